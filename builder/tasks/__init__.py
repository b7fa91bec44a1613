"""What a task is, its file, and its labelled texts, read and checked."""

from builder.tasks.examples import Examples, read_examples
from builder.tasks.recipe import Recipe
from builder.tasks.task import Split, Task
from builder.tasks.task_file import find_task, find_tasks, load_task

__all__ = ["Examples", "Recipe", "Split", "Task", "find_task", "find_tasks", "load_task", "read_examples"]
