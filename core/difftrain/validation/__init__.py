"""What a run measures and draws on the way.

- `scenes`: chooses the images to draw, once
- `validator`: draws and measures; start here
- `requests`: what the sampler is asked for
- `psnr`: how close an image is to its target
- `sheet`: images side by side
- `drawn_files`: drawn images as files
- `run_summary`: the measurements in the run's closing words
"""
