"""Names as users type them."""

import click
import pytest
from click.testing import CliRunner

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.names import folder_named, is_file_name, typed_path

FORMATS = (
    "heic pdf psd tga exr avif svg jp2 jxl gif bmp dng fits mp4 mov mkv webm dzi html json csv zip gz tgz npy pt HEIC"
)


@pytest.mark.parametrize("ending", FORMATS.split())
def test_endings_of_known_formats_are_those_of_files(ending):
    assert is_file_name(f"views/bild.{ending}")


@pytest.mark.parametrize(
    "name", ["views", "v1.5", "out.2026", "earth.final", "a.pdf/views", "bild.heic/", ".", "..", ""]
)
def test_other_names_and_those_that_end_in_a_slash_are_those_of_folders(name):
    assert not is_file_name(name)


def test_a_folder_may_have_any_name_once_it_is_there(tmp_path):
    name = str(tmp_path / "bild.heic")
    with pytest.raises(
        UserError, match=r"--out .*bild.heic ends in .heic as a file does; give a folder .*bild.heic/\)"
    ):
        folder_named("--out", name)
    (tmp_path / "bild.heic").mkdir()
    assert folder_named("--out", name) == tmp_path / "bild.heic"
    (tmp_path / "notes").write_text("")
    with pytest.raises(UserError, match="notes is a file; give a folder"):
        folder_named("--out", str(tmp_path / "notes"))


@pytest.fixture
def home(monkeypatch, tmp_path):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def test_a_tilde_at_the_beginning_is_the_home(home):
    assert typed_path("~/views/a.png") == home / "views" / "a.png"
    assert typed_path("~") == home
    for name in ("a~/b", "./~/b", "~nobody-of-this-name/b", "/a/~"):
        assert str(typed_path(name)) == name.removeprefix("./")


def test_of_commands_every_text_but_secrets_may_begin_at_home(home):
    seen = {}

    @click.command(cls=Command)
    @click.argument("data")
    @click.option("--out", default="out")
    @click.option("--network", multiple=True)
    @click.option("--secret", type=click.UNPROCESSED)
    @click.option("--missing")
    def command(**given):
        seen.update(given)

    words = ["~/p.zip", "--out=~/a/", "--network", "~/x", "--network", "earth", "--secret", "~/s"]
    given = {"data": f"{home}/p.zip", "out": f"{home}/a/", "network": (f"{home}/x", "earth"), "secret": "~/s"}
    assert CliRunner().invoke(command, words).exit_code == 0
    assert seen == given | {"missing": None}
