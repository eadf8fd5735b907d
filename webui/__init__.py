"""The page of a head, made with Gradio. Only `framework` imports gradio."""
