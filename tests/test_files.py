"""Files and folders that are whole or not there."""

import os
import signal
import threading

import pytest

from detzoo.files import check_writable, incomplete_folder, new_file, new_folder


def test_new_file_keeps_the_old_one_until_it_is_whole(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with new_file(path) as scratch:
        scratch.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_new_file_that_fails_leaves_nothing_and_names_the_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"), new_file(path) as scratch:
        scratch.write_text('ne')
        raise OSError(28, 'No space left on device')
    with pytest.raises(OSError, match='^of another kind$'), new_file(path):
        raise OSError('of another kind')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with pytest.raises(NotADirectoryError, match=r"Not a directory: '.*a\.txt/b'$"), new_file(path / 'b') as scratch:
        scratch.write_text('new')
    (tmp_path / 'folder').mkdir()
    with (
        pytest.raises(IsADirectoryError, match=r"Is a directory: '.*/folder'$"),
        new_file(tmp_path / 'folder') as scratch,
    ):
        scratch.write_text('new')
    with pytest.raises(FileNotFoundError, match='/other.txt'), new_file(path):
        (tmp_path / 'other.txt').read_text()


def test_incomplete_folder_is_removed_at_the_end(tmp_path):
    with incomplete_folder(tmp_path / 'new' / 'parent') as scratch:
        (scratch / 'sub').mkdir()
        assert scratch.parent == tmp_path / 'new' / 'parent' and scratch.name.startswith('.')
    with pytest.raises(KeyError), incomplete_folder(tmp_path / 'new' / 'parent'):
        raise KeyError
    assert not list((tmp_path / 'new' / 'parent').iterdir())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_incomplete_folder_is_removed_by_a_signal_that_would_end_the_process(tmp_path, number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end, incomplete_folder(tmp_path):
            assert signal.getsignal(number) is not signal.SIG_DFL  # or this would be the end of the tests
            os.kill(os.getpid(), number)
            raise AssertionError('the signal did not end the block')
        assert end.value.code == 128 + number and not list(tmp_path.iterdir())
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_incomplete_folder_leaves_the_handlers_of_others_alone(tmp_path):
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append('mine'))
    try:
        with incomplete_folder(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen == ['mine']


def test_incomplete_folder_works_in_threads_which_may_not_set_handlers(tmp_path):
    seen = []

    def work():
        with incomplete_folder(tmp_path) as scratch:
            seen.append(scratch.is_dir())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_new_folder_appears_when_it_is_complete_or_not_at_all(tmp_path):
    path = tmp_path / 'new'
    with new_folder(path) as folder:
        (folder / 'a.txt').write_text('whole')
        assert not path.exists()
    assert (path / 'a.txt').read_text() == 'whole' and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match='new exists and is not empty: take another folder'), new_folder(path):
        raise AssertionError('a folder that exists was given away')
    with pytest.raises(KeyError), new_folder(tmp_path / 'other') as folder:
        (folder / 'a.txt').write_text('half')
        raise KeyError
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable_names_the_folder_and_the_remedy(tmp_path):
    check_writable(tmp_path / 'new' / 'folder', 'never said')
    assert (tmp_path / 'new' / 'folder').is_dir() and not list((tmp_path / 'new' / 'folder').iterdir())
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'cannot write into .*/file/x \(Not a directory\): say another'):
        check_writable(tmp_path / 'file' / 'x', 'say another')


def test_check_writable_finds_out_by_writing(tmp_path):
    # Root may write where permissions say no, but not into /proc.
    if not os.path.isdir('/proc/self/task'):
        pytest.skip('needs a folder that nobody can write')
    with pytest.raises(OSError, match='cannot write into /proc/self/task '):
        check_writable('/proc/self/task', '')


def test_new_folder_appears_when_it_is_whole_and_only_where_nothing_is(tmp_path):
    with new_folder(tmp_path / 'a') as folder:
        (folder / 'x').write_text('x')
        assert not (tmp_path / 'a').exists()
    with pytest.raises(KeyError), new_folder(tmp_path / 'b'):
        raise KeyError
    with pytest.raises(ValueError, match='a exists and is not empty'), new_folder(tmp_path / 'a'):
        pass
    (tmp_path / 'empty').mkdir()
    with new_folder(tmp_path / 'empty') as folder:
        (folder / 'y').touch()
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a', 'empty', 'x', 'y']
