"""What each network is taught, on what, and how: recipes as data, a file a paper."""

from models.training.recipe import Recipe
from models.training.recipes import deform, dncnn, drnn, dsc, fastdvdnet, fitvnet, kpn, real, toflow, unet

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for family in (fitvnet, dncnn, drnn, dsc, fastdvdnet, toflow, real, deform, kpn, unet)
    for recipe in family.RECIPES
}
