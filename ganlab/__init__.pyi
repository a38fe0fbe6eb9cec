"""The public names, for `from ganlab import ...`. `__init__.py` reads this list."""

from . import api as api
from .errors import Diverged as Diverged, GanlabError as GanlabError, RecipeError as RecipeError
from .images.files import (
    ImageError as ImageError,
    cache_folder as cache_folder,
    decoded_size as decoded_size,
    read_image as read_image,
    split_alpha as split_alpha,
    write_png as write_png,
)
from .images.listing import (
    Listing as Listing,
    images_of as images_of,
    list_images as list_images,
    name_rank as name_rank,
    short_names as short_names,
    told_remarks as told_remarks,
)
from .images.metrics import (
    high_frequency_ratio as high_frequency_ratio,
    luma as luma,
    psnr as psnr,
    ssim as ssim,
    ssim_maps as ssim_maps,
    stride_power as stride_power,
)
from .images.ranges import Ranges as Ranges
from .images.resampling import (
    resize as resize,
    resize_exact as resize_exact,
    round_to_8_bits as round_to_8_bits,
    to_float as to_float,
    to_uint8 as to_uint8,
)
from .images.shard_crops import (
    BatchNumber as BatchNumber,
    Cutting as Cutting,
    Rows as Rows,
    ShardCrops as ShardCrops,
)
from .images.shards import ShardIndex as ShardIndex, ShardPart as ShardPart
from .images.store import (
    Entry as Entry,
    ImageStore as ImageStore,
    NoRoom as NoRoom,
    image_digest as image_digest,
)
from .monitoring.verdicts import History as History, Verdict as Verdict
from .option import Begins as Begins, MayChange as MayChange, NoEffect as NoEffect
from .plugin import (
    Batch as Batch,
    EvaluatedImage as EvaluatedImage,
    Losses as Losses,
    Plugin as Plugin,
    RecipePath as RecipePath,
    RecipePlace as RecipePlace,
    hookimpl as hookimpl,
)
from .published import (
    Archive as Archive,
    DataSet as DataSet,
    PublishedFile as PublishedFile,
    how_to_get as how_to_get,
)
from .recipe.file import did_you_mean as did_you_mean
from .run import (
    Progress as Progress,
    Run as Run,
    Terms as Terms,
    discriminators as discriminators,
    require_discriminator as require_discriminator,
)
from .runs.data import content_digest as content_digest, file_digests as file_digests
from .schedule import NonNegativeSchedule as NonNegativeSchedule, Schedule as Schedule
from .steps import (
    discriminator_losses as discriminator_losses,
    generator_losses as generator_losses,
    images_for_discriminator as images_for_discriminator,
)
from .toolbox.adaptive import AdaptiveProbability as AdaptiveProbability
from .toolbox.executor import (
    Executor as Executor,
    Handle as Handle,
    Lost as Lost,
    Outcome as Outcome,
    Sent as Sent,
    Task as Task,
)
from .toolbox.inception import InceptionDistance as InceptionDistance
from .toolbox.inception_network import InceptionFeatures as InceptionFeatures
from .toolbox.parameters import (
    first_layers as first_layers,
    parameters_named as parameters_named,
)
from .toolbox.patches import (
    log_spectrum as log_spectrum,
    random_patches as random_patches,
    require_held_out as require_held_out,
)
from .toolbox.penalties import (
    FiniteDifferencePenalty as FiniteDifferencePenalty,
    LazyPenalty as LazyPenalty,
    PatchReduce as PatchReduce,
    input_gradient as input_gradient,
)
from .toolbox.perceptual import (
    DISTSNetwork as DISTSNetwork,
    LPIPSNetwork as LPIPSNetwork,
    VGGFeatures as VGGFeatures,
)
from .toolbox.spectral import spectral_norm_faults as spectral_norm_faults
from .toolbox.tracker import Tracked as Tracked, Tracker as Tracker
from .toolbox.weights import (
    fill_network as fill_network,
    load_weights as load_weights,
    read_weights as read_weights,
    weights_file as weights_file,
)

__version__: str
