"""README.md and docs/: numbered details agree with the code, links and options exist."""

import re
from collections import Counter

from conftest import ROOT

# of torchrun and pip, not ours
FOREIGN = {'--help', '--index-url', '--master_addr', '--nnodes', '--node_rank', '--nproc_per_node'}
SKIPPED = {'.git', 'data', 'runs', 'tests'}
SCRIPT = r'(?<![\w/])(\w+\.py|-m (?!pytest)[\w.]+)'
COMMAND = re.compile(r'(?:python|torchrun)\b[^|;&#`\n]*?' + SCRIPT + r'([^|;&#`\n]*)')
OPTION = re.compile(r'(?<![\w-])--[a-z][a-z0-9_-]*')


def pages():
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def text_of(path):
    return path.read_text(encoding='utf-8')


def sources():
    """Every Python file of the repository but its tests."""
    found = sorted(ROOT.rglob('*.py'))
    return [path for path in found if not SKIPPED & {*path.relative_to(ROOT).parts}]


def tag_problems(sources, listed):
    """What is wrong with the numbers. sources: {file: text}, listed: the text of untold.md."""
    in_code = Counter()
    for text in sources.values():
        in_code.update(re.findall(r'Paper \[(\d+)\]', text))
    in_docs = Counter(re.findall(r'^- \[(\d+)\] ', listed, re.M))
    problems = []
    for number in sorted({*in_code, *in_docs}, key=int):
        if in_code[number] != 1:
            problems.append(f'[{number}] stands {in_code[number]} times in the code')
        if in_docs[number] != 1:
            problems.append(f'[{number}] stands {in_docs[number]} times in docs/untold.md')
    numbers = sorted(map(int, in_docs))
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append('the numbers of docs/untold.md have a gap')
    for name, text in sources.items():
        for line in text.splitlines():
            if re.search(r'\bPaper:', line):
                problems.append(f'{name}: a Paper comment without a number: {line.strip()}')
    return problems


def test_each_detail_has_one_place_in_the_code_and_one_in_the_list():
    texts = {str(path.relative_to(ROOT)): text_of(path) for path in sources()}
    assert len(texts) > 10
    assert tag_problems(texts, text_of(ROOT / 'docs/untold.md')) == []


def test_a_wrong_number_is_noticed():
    listed = '- [1] one\n- [2] two\n'
    good = {'a.py': '# Paper [1]: x', 'b.py': '"""Paper [2]: y"""'}
    assert tag_problems(good, listed) == []
    for name, wrong in {'missing': {'a.py': '# Paper [1]: x'},
                        'twice': {**good, 'c.py': '# Paper [2]: again'},
                        'unlisted': {**good, 'c.py': '# Paper [3]: new'},
                        'untagged': {**good, 'c.py': '# Paper: new'}}.items():
        assert len(tag_problems(wrong, listed)) == 1, name
    assert tag_problems(good, listed + '- [2] again\n')
    assert tag_problems({**good, 'c.py': '# Paper [4]: z'}, listed + '- [4] z\n')


def test_the_readme_is_short():
    assert len(text_of(ROOT / 'README.md').splitlines()) <= 200


def test_the_readme_lists_every_script_and_folder():
    listed = re.findall(r'^\| `([\w/]+(?:\.py)?)` \|', text_of(ROOT / 'README.md'), re.M)
    scripts = {path.name for path in ROOT.glob('*.py')}
    folders = {f'{path.parent.name}/' for path in sources() if path.parent.parent == ROOT}
    assert {*listed} >= scripts | folders | {'docs/', 'tests/'}
    for name in listed:
        assert (ROOT / name).exists(), name


def test_scripts_name_their_sections():
    rows = re.findall(r'^\| `(\w+\.py)` \|([^|]*)\|', text_of(ROOT / 'README.md'), re.M)
    for name, sections in rows:
        opening = text_of(ROOT / name).split('"""')[1]
        assert not sections.strip() or re.search(r'[Ss]ection|Equations', opening), name


def test_links_lead_to_files():
    for page in [*pages(), ROOT / 'miniature/README.md']:
        for link in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
            if not link.startswith(('http:', 'https:', '#')):
                assert (page.parent / link.split('#')[0]).exists(), f'{page.name}: {link}'


def test_section_links_lead_to_headings():
    for page in pages():
        for file, anchor in re.findall(r'\]\(([\w./-]*\.md)?#([\w-]+)\)', text_of(page)):
            target = page.parent / file if file else page
            headings = re.findall(r'^#+ (.*)$', text_of(target), re.M)
            anchors = [re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings]
            assert anchor in anchors, f'{page.name}: {file}#{anchor}'


def test_functions_that_the_pages_name_exist():
    named = r'`([\w/]+\.py)`: (`[\w.]+`(?:(?:, | and )`[\w.]+`)*)'
    found, absent = 0, []
    for page in pages():
        for file, names in re.findall(named, text_of(page)):
            code = text_of(ROOT / file) if (ROOT / file).exists() else ''
            for name in re.findall(r'[A-Za-z_]\w*', names):
                found += 1
                if not re.search(rf'\b(def|class) {name}\b', code):
                    absent.append(f'{page.name}: {file} {name}')
    assert found > 30 and absent == []


def options_of(paths):
    """The options that these files add to a parser, as strings in quotes."""
    quoted = r"""['"](--[a-z][a-z0-9-]*)['"]"""
    return {option for path in paths for option in re.findall(quoted, text_of(path))}


def files_of(script):
    """The files that hold the options of a command: train.py, or -m speed.bench."""
    if script == 'data.py':             # its one command
        return [ROOT / 'speed/prepare.py']
    if script.endswith('.py'):
        return [ROOT / script]
    place = ROOT.joinpath(*script.removeprefix('-m ').split('.'))
    return sorted(place.rglob('*.py')) if place.is_dir() else [place.with_suffix('.py')]


def test_every_option_that_the_pages_name_exists():
    known = options_of(sources()) | FOREIGN
    for page in pages():
        text = text_of(page)
        unknown = {*OPTION.findall(text)} - known
        assert not unknown, f'{page.name} names {unknown}'
        for script, rest in COMMAND.findall(text.replace('\\\n', ' ')):
            wrong = {*OPTION.findall(rest)} - options_of(files_of(script))
            assert not wrong, f'{page.name}: {script} has no {wrong}'
