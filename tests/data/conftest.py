"""A fixture to write logs."""

import gzip

import pytest


@pytest.fixture
def write(tmp_path):
    """Write text or bytes to a file of tmp_path; gzipped where the name says so."""

    def write_file(name, content, encoding="utf-8"):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file
