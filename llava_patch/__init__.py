"""The only code that knows LLaVA's insides. It imports nothing of ours.

Everything goes through documented seams: a forward hook on the projector, `num_additional_image_tokens` of the
processor, `mm_encoder_outputs` of the model, and the checkpoint conversion mapping. No forward is copied.
"""
