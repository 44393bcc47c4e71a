"""What differs between recipes, and which shipped one is a recipe's base."""

from __future__ import annotations

from mvd_offline.recipe import load_recipe, shipped_recipes
from mvd_offline.recipe.comparing import ABSENT, base_of, differences, flat_recipe, value_in_words


def test_a_recipe_that_ships_is_its_own_base() -> None:
    for name in shipped_recipes():
        base = base_of(load_recipe(name))
        assert base is not None
        assert (base.name, base.differences) == (name, ())
        assert not base.header.endswith((" with", ":", ","))  # whole sentences


def test_of_a_changed_recipe_the_changes_are_listed_by_dotted_key() -> None:
    base = base_of(load_recipe("finetune/vit_b_k400", ["optim.epochs=7", "augment.erasing=null"]))

    assert base is not None
    assert base.name == "finetune/vit_b_k400"
    assert [one.key for one in base.differences if not one.key.startswith("augment.erasing.")] == ["optim.epochs"]
    assert next(one.values[0] for one in base.differences if one.key == "optim.epochs") == 7
    assert {one.values[0] for one in base.differences if one.key.startswith("augment.erasing.")} == {ABSENT}


def test_under_another_name_the_closest_recipe_of_the_kind_is_the_base() -> None:
    for name in ("finetune/vit_s_ssv2", "pretrain/mae_vit_h"):
        base = base_of(load_recipe(name, ["name=mine", "training.seed=77"]))
        assert base is not None
        assert (base.name, [one.key for one in base.differences]) == (name, ["training.seed"])


def test_a_section_that_one_lacks_is_listed_by_its_keys_and_without_what_is_null_elsewhere() -> None:
    with_ema = flat_recipe(load_recipe("demo/finetune", ["ema.decay=0.9"]))
    without = flat_recipe(load_recipe("demo/finetune", ["ema=null"]))

    (found,) = differences([with_ema, without, with_ema])
    assert (found.key, found.values) == ("ema.decay", (0.9, ABSENT, 0.9))
    assert differences([{"a.b": None, "a.c": 1}, {"a": None}]) == differences([{"a.c": 1}, {}])


def test_values_read_as_in_a_file() -> None:
    values = [None, True, 0.5, [1, "a"], {"x": 1e-4}]
    assert [value_in_words(value) for value in values] == ["null", "true", "0.5", "[1, a]", "{x: 0.0001}"]
