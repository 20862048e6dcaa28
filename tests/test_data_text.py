"""needle/data/text.py and tokens.py: words, characters, batches for language models, and windows over long texts.

In: small files written here, and the folder that NEEDLE_DATA names. Out: a verdict. Next: test_data_folder.py.
"""

from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.data import Characters, Corpus, TokenFile, WindowDataset, find_shakespeare, read_split
from needle.errors import ArgumentError, DataError, DTypeError, IndexRangeError

LINES = "the cat sat\non the mat\n\nthe end\n"


@pytest.fixture
def corpus(tmp_path: Path) -> ndl.data.Corpus:
    (tmp_path / "train.txt").write_bytes(LINES.encode())
    (tmp_path / "test.txt").write_bytes(b"\xef\xbb\xbfthe dog\r\nsat")
    return ndl.data.Corpus(tmp_path)


def test_a_corpus_numbers_words_in_the_order_of_first_use(corpus: ndl.data.Corpus, tmp_path: Path) -> None:
    assert corpus.dictionary.idx2word == ["the", "cat", "sat", "<eos>", "on", "mat", "end", "dog"]
    assert corpus.train == [0, 1, 2, 3, 4, 0, 5, 3, 3, 0, 6, 3]
    assert corpus.test == [0, 7, 3, 2, 3]
    assert (corpus.dictionary.word2idx["mat"], corpus.dictionary.add_word("cat"), len(corpus.dictionary)) == (5, 1, 8)
    assert ndl.data.Corpus(tmp_path, max_lines=1).train == [0, 1, 2, 3]
    assert corpus.tokenize(tmp_path / "test.txt", max_lines=1) == [0, 7, 3]
    (tmp_path / "test.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"test.txt: expected text in UTF-8, found .* position 3; save"):
        ndl.data.Corpus(tmp_path)
    with pytest.raises(DataError, match="found no such file; a Corpus is a folder with the files train.txt and"):
        ndl.data.Corpus(tmp_path / "none")


def test_batches_as_taught(corpus: ndl.data.Corpus) -> None:
    batches = ndl.data.batchify(corpus.train, 3, device=ndl.cpu(), dtype="float32")
    np.testing.assert_array_equal(batches, np.float32([[0, 4, 3], [1, 0, 0], [2, 5, 6], [3, 3, 3]]))
    assert ndl.data.batchify(corpus.train, 5, ndl.cpu(), "int64").shape == (2, 5)
    x, y = ndl.data.get_batch(batches, 0, 2, device=ndl.cpu())
    np.testing.assert_array_equal(x.numpy(), batches[:2])
    np.testing.assert_array_equal(y.numpy(), batches[1:3].reshape(-1))
    assert (x.dtype, y.shape, x.device) == (np.float32, (6,), ndl.cpu())
    x, y = ndl.data.get_batch(batches, 2, 2, dtype="int64")  # what is left: one row
    assert (x.shape, y.shape, x.dtype) == ((1, 3), (3,), np.int64)
    for wrong in (3, -1):
        with pytest.raises(IndexRangeError, match="targets end at row 3; i goes from 0 to 2"):
            ndl.data.get_batch(batches, wrong, 2)
    with pytest.raises(ArgumentError, match="12 numbers do not give one row of 13"):
        ndl.data.batchify(corpus.train, 13)
    with pytest.raises(DTypeError, match="float16 cannot hold the number 2049"):
        ndl.data.batchify([2048, 2049], 1, dtype="float16")


def test_characters_there_and_back(tmp_path: Path) -> None:
    characters = Characters("böse 🦀!")
    numbers = characters.encode("🦀 öse!")
    assert (len(characters), characters.decode(numbers)) == (7, "🦀 öse!")
    assert characters.decode(ndl.Tensor(numbers)) == "🦀 öse!"
    characters.save(tmp_path / "v.json")
    assert Characters.load(tmp_path / "v.json").characters == characters.characters
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]
    with pytest.raises(DataError, match="'x' at position 2 is not in the vocabulary of 7"):
        characters.encode("bsx")
    with pytest.raises(IndexRangeError, match="7 at position 1 is not a number of the vocabulary; they go from 0 to 6"):
        characters.decode([0, 7])
    for bad in (b"", b"[]", b'{"characters": "ba"}', b'{"characters": 1}', b"\xff"):
        (tmp_path / "v.json").write_bytes(bad)
        with pytest.raises(DataError, match="expected a vocabulary"):
            Characters.load(tmp_path / "v.json")


def test_tokens_are_written_in_pieces_and_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    tokens = TokenFile.write(path, ([i, i + 1] for i in range(1000)), vocabulary=2**16)
    assert (len(tokens), tokens.tokens.dtype, tokens.tokens[-3:].tolist()) == (2000, np.uint16, [999, 999, 1000])
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), tokens.tokens)
    assert TokenFile.write(tmp_path / "wide.npy", [[70000]], vocabulary=70001).tokens.dtype == np.uint32
    for wrong in (5, -1, 1.5):
        with pytest.raises(DataError, match=r"at position 3 is outside the vocabulary; tokens go from 0 to 4"):
            TokenFile.write(path, [[1, 2], [3, wrong]], vocabulary=5)
    assert len(TokenFile(path)) == 2000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokens.npy", "wide.npy"]
    content = path.read_bytes()
    np.save(path, np.zeros((2, 2), np.int64))
    for bad in (content[:-1], content[:50], b"", path.read_bytes(), b"To be, or not to be"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="expected an npy file with one axis of whole numbers") as caught:
            TokenFile(path)
        assert "pickle" not in str(caught.value)
    with pytest.raises(DataError, match="found No such file"):
        TokenFile(tmp_path / "none.npy")


def test_windows(tmp_path: Path) -> None:
    text = np.arange(100)
    windows = WindowDataset(TokenFile.write(tmp_path / "t.npy", [text], 100), length=8)
    assert len(windows) == 12
    np.testing.assert_array_equal(windows[1][0], text[8:16])
    np.testing.assert_array_equal(windows[:][0].reshape(-1), text[:96])
    np.testing.assert_array_equal(windows[:][1].reshape(-1), text[1:97])
    with pytest.raises(IndexRangeError):
        windows[12]
    drawn = WindowDataset(text, length=8, samples=500)
    np.random.seed(3)
    together = drawn[:]
    np.random.seed(3)
    np.testing.assert_array_equal(together[0], np.stack([drawn[i][0] for i in range(500)]))
    np.testing.assert_array_equal(together[1], together[0] + 1)
    assert (together[0].min(), together[1].max()) == (0, 99)  # the first and the last window are drawn too
    for wrong in (0, 100):
        with pytest.raises(ArgumentError, match="from 1 to 99 here"):
            WindowDataset(text, wrong)


def test_an_empty_text_is_named(tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).touch()
    for read in (lambda: Corpus(tmp_path), lambda: read_split(tmp_path / "train.txt")):
        with pytest.raises(DataError, match=r"train\.txt: expected text in UTF-8, found an empty file; put text"):
            read()


def test_the_real_text() -> None:
    folder = find_shakespeare()
    if folder is None:
        pytest.skip("tiny Shakespeare was not found: NEEDLE_DATA names no folder with it")
    train, test = read_split(folder / "input.txt")
    assert (len(train), len(test), len(Characters(train + test))) == (1003855, 111539, 65)
