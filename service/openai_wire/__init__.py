"""OpenAI's images API as wire models: `requests`, `edits` and `answers`.

Source: OpenAI API reference, images; `seed`, `num_inference_steps`, `guidance_scale`,
`negative_prompt` and `strength` are the extra names that SGLang and vLLM-Omni share.
"""
