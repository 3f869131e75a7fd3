import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
