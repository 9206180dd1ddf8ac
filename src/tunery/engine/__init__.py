"""The inference engine and the Ray cluster under it: the only package that names vllm or ray.*.llm."""
