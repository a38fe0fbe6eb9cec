"""The sets of images of the super-resolution literature: who publishes them, where, on which terms.

Facts alone: nothing here opens a connection, and nothing needs torch. `ganlab data fetch` reads it.
Sizes and digests are those that the publisher states, or that public records agree on; where
neither exists, they are left out.
"""

from ganlab import Archive, DataSet, PublishedFile

_ETH = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
_ACADEMIC = "academic research only; the images belong to their owners"
_RECORDS = "public records; its publisher states none"


def _on_hugging_face(
    name: str, size: int, num_images: int, licence: str, about: str, sha256: str = ""
) -> DataSet:
    """A set that eugenesiow has put on Hugging Face as one archive of its HR images.

    :param size: as the page of the files shows it, in three digits.
    """
    page = f"https://huggingface.co/datasets/eugenesiow/{name}"
    file = PublishedFile(
        name=name,
        source=f"{page}/resolve/main/data/{name}_HR.tar.gz",
        licence=licence,
        size=size,
        is_rounded=True,
        sha256=sha256,
        sha256_from="the page of the file on Hugging Face",
        hosts=("huggingface.co", "hf.co"),
    )
    return DataSet(name, about, page, (Archive(file, f"{name}_HR", name, num_images),))


DIV2K = DataSet(
    name="DIV2K",
    about="2K photographs, 800 to train on and 100 to validate (Agustsson and Timofte, CVPRW 2017)",
    page=f"{_ETH}/",
    archives=(
        Archive(
            PublishedFile(
                name="DIV2K_train_HR",
                source=f"{_ETH}/DIV2K_train_HR.zip",
                licence=_ACADEMIC,
                size=3_530_603_713,
                sha256="9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
                sha256_from=_RECORDS,
            ),
            inside="DIV2K_train_HR",
            folder="DIV2K_train_HR",
            num_images=800,
        ),
        Archive(
            PublishedFile(
                name="DIV2K_valid_HR",
                source=f"{_ETH}/DIV2K_valid_HR.zip",
                licence=_ACADEMIC,
                size=448_993_893,
                sha256="20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
                sha256_from=_RECORDS,
            ),
            inside="DIV2K_valid_HR",
            folder="DIV2K_valid_HR",
            num_images=100,
        ),
    ),
)

FLICKR2K = DataSet(
    name="Flickr2K",
    about="2K photographs from Flickr to train on (Lim et al., CVPRW 2017, EDSR)",
    page="https://github.com/limbee/NTIRE2017",
    archives=(
        Archive(
            PublishedFile(
                name="Flickr2K",
                source="https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",
                licence="none stated; the images belong to their owners",
            ),
            inside="Flickr2K_HR",
            folder="Flickr2K_HR",
            num_images=2650,
        ),
    ),
)

SET5 = _on_hugging_face(
    "Set5", 852_000, 5, "academic use",
    "test images of Bevilacqua et al., BMVC 2012",
    "260fc447296333f6c2716bcd65513968c33b666f21a905537ee3330c51a1945b",
)  # fmt: skip

SET14 = _on_hugging_face(
    "Set14", 4_980_000, 14, "academic use",
    "test images of Zeyde, Elad and Protter, Curves and Surfaces 2010",
)  # fmt: skip

URBAN100 = _on_hugging_face(
    "Urban100", 135_000_000, 100, "CC BY 4.0, as stated there",
    "photographs of buildings, to test (Huang, Singh and Ahuja, CVPR 2015)",
)  # fmt: skip

BSD100 = DataSet(
    name="BSD100",
    about="the 100 test images of the Berkeley segmentation data set (Martin et al., ICCV 2001)",
    page="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/",
    archives=(
        Archive(
            PublishedFile(
                name="BSDS300",
                source="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
                "segbench/BSDS300-images.tgz",
                licence="non-commercial research and education",
                sha256="a5f7d0e49fe135c75518a3543ced24470156fd69305ae77845dff2a5138652b4",
                sha256_from=_RECORDS,
            ),
            inside="images/test",
            folder="BSD100",
            num_images=100,
        ),
    ),
)
