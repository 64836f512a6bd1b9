"""Recipes: which type each matrix of a model is quantised to, by the names and rules that llama.cpp's users know.

A recipe is a type for most matrices, and more bits where they matter most: for the classifier, for attn_v and ffn_down
of some layers. Rows that are no whole blocks of 256 take a type of 32 values instead (FALLBACK), and rows that are no
whole blocks of 32 are F16. Vectors stay F32.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llama2c._core import block_types

QUANTIZATION_VERSION = 2  # of the blocks' layouts, GGUF's general.quantization_version
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


@dataclass(frozen=True)
class Place:
    """What a rule looks at."""

    layer: int  # 0 for what no layer owns
    n_layers: int
    shared: int  # query heads for each KV head

    @property
    def chosen(self) -> bool:
        """The layers that get more bits: the first and the last eighth, and every third between."""
        eighth = self.n_layers // 8
        return self.layer < eighth or self.layer >= 7 * self.n_layers // 8 or (self.layer - eighth) % 3 == 2


Rule = Callable[[Place], str]


@dataclass(frozen=True)
class Recipe:
    """Types by the role of a matrix; roles without a rule are of the type `most`."""

    number: int  # GGUF's general.file_type
    most: str
    output: str  # of the classifier, also where that is the embedding table
    rules: dict[str, Rule]


def _plain(number: int, name: str, output: str = "Q6_K", **rules: Rule) -> Recipe:
    return Recipe(number, name, output, rules)


def _always(name: str) -> Rule:
    return lambda place: name


def _chosen(more: str, most: str) -> Rule:
    return lambda place: more if place.chosen else most


RECIPES = {
    "F32": _plain(0, "F32", "F32"),
    "F16": _plain(1, "F16", "F16"),
    "BF16": _plain(32, "BF16", "BF16"),
    "Q8_0": _plain(7, "Q8_0", "Q8_0"),
    "Q4_0": _plain(2, "Q4_0"),
    "Q4_1": _plain(3, "Q4_1"),
    "Q5_0": _plain(8, "Q5_0"),
    "Q5_1": _plain(9, "Q5_1"),
    "Q2_K": _plain(
        10,
        "Q2_K",
        attn_v=lambda place: "Q4_K" if place.shared >= 4 else "Q3_K",
        attn_output=_always("Q3_K"),
        ffn_down=_always("Q3_K"),
    ),
    "Q3_K_S": _plain(11, "Q3_K"),
    "Q3_K_M": _plain(
        12,
        "Q3_K",
        attn_v=lambda place: "Q5_K" if place.layer < 2 else "Q4_K",
        attn_output=_always("Q4_K"),
        ffn_down=lambda place: "Q5_K" if place.layer < place.n_layers // 16 else "Q4_K",
    ),
    "Q3_K_L": _plain(13, "Q3_K", attn_v=_always("Q5_K"), attn_output=_always("Q5_K"), ffn_down=_always("Q5_K")),
    "Q4_K_S": _plain(
        14,
        "Q4_K",
        attn_v=lambda place: "Q5_K" if place.layer < 4 else "Q4_K",
        ffn_down=lambda place: "Q5_K" if place.layer < place.n_layers // 8 else "Q4_K",
    ),
    "Q4_K_M": _plain(15, "Q4_K", attn_v=_chosen("Q6_K", "Q4_K"), ffn_down=_chosen("Q6_K", "Q4_K")),
    "Q5_K_S": _plain(16, "Q5_K"),
    "Q5_K_M": _plain(17, "Q5_K", attn_v=_chosen("Q6_K", "Q5_K"), ffn_down=_chosen("Q6_K", "Q5_K")),
    "Q6_K": _plain(18, "Q6_K"),
}


def names() -> str:
    """All recipes, with commas between."""
    return ", ".join([*RECIPES, *(f"{short} (= {name})" for short, name in ALIASES.items())])


def recipe_of(name: str) -> Recipe:
    """The recipe of a name in upper or lower case. Raises ValueError listing all."""
    upper = name.upper()
    recipe = RECIPES.get(ALIASES.get(upper, upper))
    if recipe is None:
        raise ValueError(f"no type {name!r}; there are {names()}")
    return recipe


def type_of(recipe: Recipe, tensor: str, shape: tuple[int, ...], config: dict[str, int]) -> str:
    """The type of a tensor ("blk.3.ffn_down.weight", rows first) in a model of that configuration."""
    if len(shape) == 1:
        return "F32"
    *block, role = tensor.removesuffix(".weight").split(".")
    place = Place(int(block[1]) if block else 0, config["n_layers"], config["n_heads"] // config["n_kv_heads"])
    classifier = role == "output" or (role == "token_embd" and bool(config["tied"]))
    if classifier:
        return _fitting("Q8_0" if recipe.output == "Q6_K" and shape[1] % 256 else recipe.output, shape[1])
    wanted = recipe.rules.get(role, _always(recipe.most))(place)
    # Llama 2 and 3 of 70B: eight heads share one attn_v, so that more bits for it cost little.
    if role == "attn_v" and place.n_layers == 80 and place.shared > 1 and wanted in ("Q3_K", "Q4_K"):
        wanted = "Q5_K"
    return _fitting(wanted, shape[1])


def _fitting(name: str, cols: int) -> str:
    """The type itself, or what takes its place for rows of `cols`."""
    blocks = block_types()
    if cols % blocks[name][1]:
        name = FALLBACK.get(name, "F16")
    return name if cols % blocks[name][1] == 0 else "F16"
