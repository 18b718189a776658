"""Tables 1 to 8 of section 4.2, and pictures in the manner of Figures 5 to 12.

    tables      as text, with the paper's own rows (paper_tables.csv)
    pictures    heatmaps in colour and over a frame, the ground truth, contact sheets
    curves      the losses of a training run; precision and recall (Figure 7)
    report      the samples that evaluate.py shows: on contact sheets, and on a page with sound
    scores      --json, --csv, and the counts of what was not scored
    compare     several results in the paper's tables
    own         one picture and one sound of your own

Shapes: H W pixels of a frame, h w cells of a heatmap. Frames and tiles are uint8 RGB.
"""

import os


def attempt(picture, draw, *arguments):
    """Call draw(*arguments), which writes the file `picture`. -> whether it did; prints why not."""
    try:
        draw(*arguments)
    except Exception as error:              # a picture that fails must not cost the run its scores
        reason = str(error).strip() or type(error).__name__
        print(f'{picture} was not drawn: {reason.splitlines()[0]}')
        return False
    return True


def import_matplotlib():
    """Import it without MPLBACKEND, which a notebook sets to what only the notebook may have."""
    inherited = os.environ.pop('MPLBACKEND', None)
    import matplotlib
    if inherited is not None:
        os.environ['MPLBACKEND'] = inherited
    return matplotlib
