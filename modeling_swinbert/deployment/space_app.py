"""The program of a Space, where it is called app.py: the demo with the model and the clip beside it."""

from pathlib import Path

from swinbert.captioning import load_captioner
from swinbert.captioning.demo.app import launch
from swinbert.captioning.demo.service import Demo

if __name__ == "__main__":
    folder = Path(__file__).parent
    with Demo(load_captioner(str(folder / "model")), example=folder / "example.mp4") as demo:
        launch(demo).block_thread()
