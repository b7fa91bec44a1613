"""What a task is, its file, and its labelled texts."""

from onetrunk.tasks.examples import Examples, read_examples
from onetrunk.tasks.records import Split
from onetrunk.tasks.task import FittedTask, Recipe, Task
from onetrunk.tasks.task_file import find_task, find_tasks, load_task

__all__ = ["Examples", "FittedTask", "Recipe", "Split", "Task", "find_task", "find_tasks", "load_task", "read_examples"]
