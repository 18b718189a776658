"""Pictures and tables: heatmaps over frames, contact sheets, curves, and Tables 1 to 8 of section 4.2.

    from figures.pictures import contact_sheet, ground_truth_tile, heat_colours, overlay
    row = [frame, ground_truth_tile(frame, mask), heat_colours(heatmap), overlay(frame, heatmap)]
    contact_sheet([row], 'sheet.png', columns=['frame', 'ground truth', 'heatmap', 'overlay'],
                  row_labels=['dog, IoU 0.81'])
    loss_curve('runs/first/log.jsonl', 'curve.png')
    print(task_tables('single', {'is4': {'cIoU': 65.9, 'AUC': 53.5, 'n': 480, 'n_expected': 480}}, None, paper='av'))

Every heatmap is coloured on the fixed scale 0..1 and never stretched to its own minimum and maximum: a silent
clip's empty map looks empty, and two maps side by side can be compared.

Shapes: H W pixels of the frame, h w cells of the heatmap. Colours are uint8 RGB. Nothing here needs torch.
"""


def attempt(picture, draw, *arguments):
    """Call draw(*arguments), which writes the file `picture`. -> whether it did; prints why not."""
    try:
        draw(*arguments)
    except Exception as error:                              # no picture is worth the run's scores
        reason = str(error).strip() or type(error).__name__
        print(f'{picture} was not drawn: {reason.splitlines()[0]}')
        return False
    return True
