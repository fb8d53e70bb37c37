"""Where records come from: made scenes, COCO files, folders of images."""
