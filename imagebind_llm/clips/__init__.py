"""From a media file to ImageBind's inputs.

In: a file with video, sound or both. Out: crops of frames (3 x 224 x 224) and mel spectrograms, window by window.
container.py opens a file; media.py decodes; crops.py window times and crops; mel.py resampling and filter banks.
"""
