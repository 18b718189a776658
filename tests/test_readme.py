"""The README's numbered list points at lines; they must be the lines it means."""

import re

from conftest import ROOT


def test_every_untold_detail_points_at_its_paper_comment():
    links = re.findall(r'\[(\w+\.py):(\d+)\]\((\w+\.py)#L(\d+)\)', (ROOT / 'README.md').read_text())
    assert len(links) >= 20
    for shown, number, file, anchor in links:
        line = (ROOT / file).read_text().splitlines()[int(number) - 1]
        assert shown == file and number == anchor and 'Paper:' in line, (file, number, line)


def test_every_file_of_the_map_exists_and_names_its_section():
    listed = re.findall(r'^\| `(\w+\.py)` \|([^|]*)\|', (ROOT / 'README.md').read_text(), re.M)
    assert {file for file, _ in listed} == {path.name for path in ROOT.glob('*.py')}
    for file, sections in listed:
        opening = (ROOT / file).read_text().split('"""')[1]
        assert not re.search(r'\d', sections) or re.search(r'section|Section|Equations', opening), file
