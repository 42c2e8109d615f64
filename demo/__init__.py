"""The web page: a photo -> what several networks see in it, side by side. A Gradio Space, or `resnext-hub demo`."""
