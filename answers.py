"""The language model's answers as training takes them, section 3.6: from a captions file to the embeddings C of Eq. 6.

    path = captions_path('data/miniature')                          # data/miniature/captions.jsonl; captions.py writes it
    read_captions(path, ids)[ids[0]]['object']                      # 'dog', or '' for a pair without an answer
    C, row_of = load_answers(args, model, tokenizer, ids, device)   # C[row_of[id]] is E_CLIP_t(c_i)

The text encoder is frozen, so every answer is encoded once, not in every step; the embeddings are kept in
<captions>.embeddings, with a hash of the texts and of the encoder's weights.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from model import ROOT
from processes import rank_and_processes
from resumable import refuse_missing, whole_lines, write_whole


def captions_path(root, captions_from='both'):
    """Where a data root's captions lie: captions.jsonl, or Table 10's captions-image.jsonl and captions-audio.jsonl."""
    return Path(root) / ('captions.jsonl' if captions_from == 'both' else f'captions-{captions_from}.jsonl')


def read_captions(path, ids):
    """A finished captions file, for training. -> {id: line} for the given ids; a pair without an answer has object ''.

    FileNotFoundError or ValueError, one sentence: absent, torn, not UTF-8, a pair twice, other pairs than ids.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no captions at {path}: make them with python captions.py all (--data-root, --captions-from as '
                                'here), or name others with --captions')
    found = {}
    for line in whole_lines(path, 'rerun captions.py, which completes it'):
        if not isinstance(line.get('id'), str) or not isinstance(line.get('object'), str):
            raise ValueError(f'{path}: the entry {str(line)[:80]} needs an id and an object, both '
                             'texts; captions.py writes such files')
        if line['id'] in found:
            raise ValueError(f'{path} names the pair {line["id"]} twice: make it anew with '
                             'captions.py')
        found[line['id']] = line
    refuse_missing(path, found, ids)
    return {i: found[i] for i in ids}


def make_captions(captions_from):
    """The miniature captions its own pairs when they are first asked for: captions.py with its defaults."""
    environment = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')}
    command = [sys.executable, str(ROOT / 'captions.py'), 'all', '--captions-from', captions_from]
    if subprocess.run(command, env=environment).returncode:
        raise ValueError('captions.py failed, see above: mend that, then train again')


def load_answers(args, model, tokenizer, ids, device):
    """The language model's answers, encoded once. -> C (different answers, D), {id: row of C}

    Paper: c_i goes through CLIP's text encoder as it is, without the prompt "A photo of a" around it.
    """
    path = Path(args.captions or captions_path(args.data_root, args.captions_from))
    object_of = {i: line['object'] for i, line in read_captions(path, ids).items() if line['object']}
    args.answers = hashlib.sha256(json.dumps(sorted(object_of.items())).encode()).hexdigest()[:12]      # for --resume
    texts = sorted(set(object_of.values()))
    if len(texts) < 2:
        raise ValueError(f'{path} holds {len(texts)} different answers: L_ACL_C needs two; run captions.py again')
    C = cached_embeddings(model, tokenizer, texts, path.with_name(f'{path.name}.embeddings'))
    if rank_and_processes()[0] == 0:
        print(f'{path}: {len(object_of)} of {len(ids)} pairs have an answer, {len(texts)} different ones')
    row_of = {text: row for row, text in enumerate(texts)}
    return C.float().to(device), {i: row_of[text] for i, text in object_of.items()}


def cached_embeddings(model, tokenizer, texts, path):
    """CLIP text embeddings (texts, D) of the raw texts, kept in a file under a key of the texts and the encoder's weights."""
    key = hashlib.sha256(json.dumps(texts).encode())
    for name, weight in model.clipseg.clip.state_dict().items():
        if name.startswith('text'):
            key.update(weight.cpu().numpy().tobytes())
    key = key.hexdigest()
    try:
        with safe_open(path, 'pt') as file:
            if (file.metadata() or {}).get('key') == key:
                return file.get_tensor('C')
    except (OSError, SafetensorError):                      # not there yet, or torn: made anew
        pass
    C = torch.cat([model.embed_text(tokenizer, texts[i:i + 256], template='<*>') for i in range(0, len(texts), 256)]).cpu()
    if rank_and_processes()[0] == 0:
        write_whole(path, save({'C': C.contiguous()}, {'key': key}))
    return C
