"""Names of files in place of folders."""

import pytest

from dnnlib.endings import folder_named, is_file_name
from dnnlib.errors import UserError

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
