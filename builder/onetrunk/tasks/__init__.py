"""What a task is, its file, and its labelled texts, read and checked."""

from onetrunk.tasks.examples import Examples, read_examples
from onetrunk.tasks.recipe import Recipe
from onetrunk.tasks.task import Split, Task
from onetrunk.tasks.task_file import find_task, find_tasks, load_task

__all__ = ["Examples", "Recipe", "Split", "Task", "find_task", "find_tasks", "load_task", "read_examples"]
