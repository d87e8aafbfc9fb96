"""From a conversation to tokens: the template, its sandbox, the renderer, and the laws that every sample keeps."""
