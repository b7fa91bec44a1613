"""Another user of the same machine, who reads all that the kernel lets him read, and knocks at every door.

Run as a program of its own, without the project: `python spy.py` under another uid. The first line of stdin is JSON:
secrets to look for (name -> text), and folders to search. Further lines add doors, which are ports. It reads until
stdin is closed, then prints what it found as JSON. An empty line is answered by one when it has looked at everything.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
import urllib.error
import urllib.request

MOST = 4 << 20
FILES = [
    "cmdline",
    "environ",
    "maps",
    "status",
    "stat",
    "io",
    "auxv",
    "mountinfo",
    "wchan",
    "stack",
    "comm",
    "limits",
    "cgroup",
]
LINKS = ["cwd", "exe", "root"]
PAUSE_S = 0.02


class Spy:
    """What was read, and what of it is a secret."""

    def __init__(self, secrets, folders):
        self.secrets = {name: text.encode() for name, text in secrets.items()}
        self.folders = folders
        self.began = time.time()
        self.read, self.denied, self.passes = 0, 0, 0
        self.seen = {}
        self.doors = set()
        self.opened = set()

    def look(self, content, place):
        """Look for the secrets in something that could be read."""
        self.read += 1
        for name, secret in self.secrets.items():
            if secret in content:
                self.seen.setdefault(name, place)

    def file(self, path):
        """Read a file, if it may be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self.denied += 1
            return
        try:
            self.look(os.read(descriptor, MOST), path)
        except OSError:
            self.denied += 1
        finally:
            os.close(descriptor)

    def processes(self):
        """Read what /proc says of every other process."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if int(pid) == os.getpid():
                continue
            for name in FILES:
                self.file(f"/proc/{pid}/{name}")
            for name in LINKS:
                try:
                    self.look(os.readlink(f"/proc/{pid}/{name}").encode(), f"/proc/{pid}/{name}")
                except OSError:
                    self.denied += 1
            try:
                for number in os.listdir(f"/proc/{pid}/fd"):
                    self.file(f"/proc/{pid}/fd/{number}")
            except OSError:
                self.denied += 1

    def files(self):
        """Read what has changed since the start, in folders where programs leave things."""
        for folder in self.folders:
            for place, _, names in os.walk(folder):
                for name in names:
                    path = os.path.join(place, name)
                    with contextlib.suppress(OSError):
                        if os.stat(path).st_mtime >= self.began - 1:
                            self.file(path)

    def sockets(self):
        """Connect to every Unix socket that has a name in the folders, and to those that the kernel lists."""
        with contextlib.suppress(OSError), open("/proc/net/unix", encoding="utf-8", errors="replace") as listed:
            for line in listed:
                path = line.split()[-1]
                if path.startswith(tuple(self.folders)):
                    self.knock(path)

    def knock(self, path):
        """Connect to a Unix socket, if that is allowed."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(path)
            except OSError:
                self.denied += 1
            else:
                self.opened.add(path)

    def ports(self):
        """Ask for what only the key opens, at ports of the server."""
        for door in self.doors:
            request = urllib.request.Request(f"http://{door}/v2/repository/index", data=b"{}", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=5):
                    self.opened.add(door)
            except urllib.error.HTTPError:
                self.denied += 1
            except OSError:
                pass

    def run(self):
        """Look until stdin is closed."""
        while True:
            self.processes()
            self.files()
            self.sockets()
            self.ports()
            self.passes += 1
            if select.select([sys.stdin], [], [], PAUSE_S)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                if line.strip():
                    self.doors.add(line.strip())
                else:
                    print("looked", flush=True)

    def report(self):
        """What was found."""
        counts = {"passes": self.passes, "read": self.read, "denied": self.denied}
        return {"uid": os.getuid(), **counts, "seen": self.seen, "opened": sorted(self.opened)}


if __name__ == "__main__":
    orders = json.loads(sys.stdin.readline())
    spy = Spy(orders["secrets"], orders["folders"])
    spy.run()
    print(json.dumps(spy.report()))
