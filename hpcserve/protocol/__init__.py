"""The wire formats (OpenAI's and SGLang's), shared by server and batch."""
