"""How training images are varied."""

from pydantic import Field

from d2dmoe.config.strict import Strict


class AugmentConfig(Strict):
    """Random changes of training images. Resized crops are of the image as it was published where
    it is decoded each time (in_memory: false); all else acts on the image_size square."""

    flip: bool = Field(False, description="Mirror each image left to right with probability 1/2")
    crop_padding: int = Field(
        0, ge=0, description="Pixels of zero padding on every side before a random crop; 0: no crop"
    )
    random_resized_crop: bool = Field(
        False,
        description="Crop a random 8 % to 100 % of the area at a ratio of 3:4 to 4:3, resized back",
    )
