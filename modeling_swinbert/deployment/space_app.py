"""The program of a Space, where it is called app.py: the demo with the model and the clip beside it."""

from pathlib import Path

from swinbert.captioning import load_captioner
from swinbert.captioning.demo.app import serve
from swinbert.captioning.demo.service import Demo

if __name__ == "__main__":
    folder = Path(__file__).parent
    serve(Demo(load_captioner(str(folder / "model")), example=folder / "example.mp4"))
