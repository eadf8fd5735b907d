"""The page of a head, made with Gradio. Knows the head only through `HeadPort`; nothing else imports gradio."""
