"""What each network is taught, on what, and how: recipes as data, a file a paper."""

from models.training.recipe import Recipe
from models.training.recipes import dncnn, fitvnet

RECIPES: dict[str, Recipe] = {recipe.name: recipe for family in (fitvnet, dncnn) for recipe in family.RECIPES}
