"""The fourteen test sets of section 4.1 as their authors released them: the files of each sample.

    samples = BENCHMARKS['avs_ms3'](root)       # root: a Path. -> [BenchmarkSample]

Files below the root                                                            benchmark
vggss/{frames, audio, vggss.json}                                               vggss
vggss/{extend_frames, extend_audio, vggss_test_plus_silent.csv}                 ext_vggss
flickr/test/{frames, audio, Annotations}, flickr/flickr_test.csv                flickr
flickr/{extend_frames, extend_audio, flickr_test_plus_silent.csv}               ext_flickr
is4/{visual_frames, audio_wav, gt_masks, synthetic3240_bbox.json}               is4
vpo_ss/{visual_frames, audio_wav, gray_masks, vpo_ss_bbox.json, labels.csv}     vpo_ss
vpo_ms/{the same, vpo_ms_bbox.json}                                             vpo_ms
avsbench/s4/{visual_frames, audio_wav, gt_masks, avs1_s4_test.csv, s4_box.json} avs_s4, robust_s4
avsbench/ms3/{visual_frames, audio_wav, gt_masks, avs1_ms3_test.csv}            avs_ms3, robust_ms3
ade20k/{frames, audio, annotations, prompted_segmentation.csv}                  ade20k
vgg_instruments/{frames, audio, annotations, vgginstruments_multi_test.csv}     vgg_instruments
vgg_duet/vggsound_duet_test.csv, the rest in vggss                              vgg_duet

Only annotation files are read here; data.py turns samples into tensors. FileNotFoundError: an
annotation file is missing; ValueError: it is invalid. Both are one sentence that names the file.
"""

from benchmarks.ade20k import list_ade20k
from benchmarks.avsbench import list_avs_ms3, list_avs_s4, with_negatives
from benchmarks.flickr import list_flickr
from benchmarks.is4 import list_is4, list_vpo
from benchmarks.mixtures import list_vgg_duet, list_vgg_instruments
from benchmarks.vggss import extended, list_vggss

BENCHMARKS = {
    'vggss': list_vggss, 'flickr': list_flickr, 'is4': list_is4,
    'vpo_ss': lambda root: list_vpo(root / 'vpo_ss'),
    'vpo_ms': lambda root: list_vpo(root / 'vpo_ms'),
    'avs_s4': list_avs_s4, 'avs_ms3': list_avs_ms3, 'ade20k': list_ade20k,
    'ext_vggss': lambda root: extended(list_vggss(root), root / 'vggss', root / 'vggss'),
    'ext_flickr': lambda root: extended(list_flickr(root), root / 'flickr', root / 'flickr/test'),
    'robust_s4': lambda root: with_negatives(list_avs_s4(root)),
    'robust_ms3': lambda root: with_negatives(list_avs_ms3(root)),
    'vgg_instruments': list_vgg_instruments, 'vgg_duet': list_vgg_duet}
