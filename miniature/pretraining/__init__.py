"""What made the miniature's weights: nobody has to run it again.

The paper takes its backbones as they come (section 4.1: CLIP ViT-B/16, CLIPSeg, BEATs, and the
encoders of the baselines; section 3.6: BLIP-2, Qwen2-Audio, Mistral). These files play the part of
the people who made them: they see scenes with their descriptions and sounds with their labels.
train.py never does.

    __main__.py             the command: python -m miniature.pretraining
    tiny_beats.py           the audio encoder
    tiny_clipseg.py         CLIP and the CLIPSeg decoder
    captioners.py           the three models of section 3.6, and how good they are
    tiny_blip2.py, tiny_qwen2_audio.py, tiny_mistral.py
    tiny_clap.py, tiny_owlv2.py, tiny_spaces.py     of the baselines; the last holds three models
    lessons.py              what they learn from, and their training loop
    language.py             the words, and the tokenizers
"""
