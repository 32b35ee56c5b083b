"""Worlds as texts: what each form means, that it reads back as it was written, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from conftest import calibrated_generator, small_config
from hypothesis import given
from hypothesis import strategies as st

import multiscale
from dnnlib.errors import UserError
from multiscale.rendering.worlds import MAX_SEED, SYNTAX, Latent, Style, World
from torch_utils.random import latents


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return calibrated_generator(small_config())


def ws_of(generator, seed, psi=1.0):
    return generator.mapping(latents(seed, 16), psi)


def test_a_seed_is_its_latent(generator):
    torch.testing.assert_close(World.parse("3").ws(generator), ws_of(generator, 3))
    assert World.parse(3) == World.parse(" 3 ")


@pytest.mark.parametrize("psi", [1.0, 0.5])
def test_a_mix_lies_between_its_seeds_in_w(generator, psi):
    expected = torch.lerp(ws_of(generator, 3, psi), ws_of(generator, 7, psi), 0.25)
    torch.testing.assert_close(World.parse("3~7:0.25").ws(generator, psi), expected)


def test_styles_of_layers_come_from_another_seed(generator):
    ws = World.parse("3_7@4-8").ws(generator)
    a, b = ws_of(generator, 3), ws_of(generator, 7)
    torch.testing.assert_close(ws[:, 5:10], b[:, 5:10])
    torch.testing.assert_close(ws[:, :5], a[:, :5])
    torch.testing.assert_close(ws[:, 10:], a[:, 10:])
    torch.testing.assert_close(World.parse("3_7@0-14").ws(generator)[:, 1:], b[:, 1:])
    torch.testing.assert_close(World.parse("3_7@4").ws(generator)[:, 5], b[:, 5])


def test_worlds_in_the_manual_are_worlds_of_the_bundled_model():
    manual = (Path(__file__).parents[2] / "docs" / "exploring.md").read_text(encoding="utf-8")
    texts = re.findall(r"^\| `(3[^`]*)` \|", manual, re.MULTILINE)
    examples = [*texts, *re.findall(r"\d[d~_@]\S+?(?=[,.]?(?:\s|$))", SYNTAX)]
    assert len(texts) == 5
    assert {"3~7:0.25", "3_7@4-6"} <= set(examples)
    generator = multiscale.load("earth").generator
    for text in examples:
        assert World.parse(text).ws(generator).isfinite().all()


def test_drift_moves_smoothly_and_comes_back(generator):
    still, near, far = (World.parse(text).ws(generator) for text in ("3d0:0", "3d0.01:0", "3d1:0"))
    torch.testing.assert_close(still, ws_of(generator, 3))
    assert 0 < (near - still).abs().max() < 0.1 * (far - still).abs().max()


def test_a_layer_that_is_not_there_is_refused(generator):
    with pytest.raises(UserError, match="layers 0 to 14"):
        World.parse("3_7@4-15").ws(generator)


UNREADABLE = [
    *[
        "",
        "-1",
        "3~",
        "3~7",
        "3~7:",
        "3~7:nan",
        "3~7:1e9",
        "3d1",
        "3d1:2:3",
        "3_7",
        "3_7@",
        "3_7@5-4",
        "3 7",
        "４",
        "x",
    ],
    *[str(MAX_SEED + 1), "3~7:0.5" * 20, "~".join(["3"] + ["7:0.5"] * 16), "9" * 10000],
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_one_short_sentence(text):
    with pytest.raises(UserError, match="cannot be read") as error:
        World.parse(text)
    assert len(str(error.value)) < 250


numbers = st.floats(-99, 99).map(lambda x: round(x, 6))
terms = st.builds(Latent, st.integers(0, MAX_SEED), st.tuples(numbers, numbers))
ranges = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
styles = st.builds(lambda latent, r: Style(latent, *r), terms, ranges)


@given(
    st.builds(
        World,
        terms,
        st.lists(st.tuples(terms, numbers), max_size=3).map(tuple),
        st.lists(styles, max_size=3).map(tuple),
    )
)
def test_a_world_reads_back_as_it_was_written(world):
    assert World.parse(str(world)) == world
