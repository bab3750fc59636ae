"""No process of a server opens a file or folder to other users. Runs in the server's environment, as `sitecustomize`.

Ray gives its folders mode 777, whatever the umask, and gives it again whenever a process connects.
"""

import os

_chmod = os.chmod


def chmod(path, mode, **options):
    _chmod(path, mode & ~0o077, **options)


os.chmod = chmod
