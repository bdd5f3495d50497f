# What Python programs ordinarily do. An exception is a failure.
import asyncio, ctypes, csv, hashlib, json, mmap, multiprocessing, os, platform, random, shutil, signal, socket
import sqlite3, ssl, subprocess, sys, tempfile, threading, time, urllib.request, uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args):
        pass


def square(n):
    return n * n


def main():
    with tempfile.TemporaryDirectory() as d:
        a, b = os.path.join(d, "a"), os.path.join(d, "b")
        with open(a, "w") as f:
            f.write("1,2\n" * 1000)
        shutil.copy2(a, b)
        assert sum(1 for _ in csv.reader(open(b))) == 1000
        with open(b, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
            assert m[:3] == b"1,2"
        shutil.copytree(d, d + "-copy")
        db = sqlite3.connect(os.path.join(d, "db"))
        db.execute("create table t (x)")
        db.executemany("insert into t values (?)", [(i,) for i in range(100)])
        db.commit()
        assert db.execute("select sum(x) from t").fetchone() == (4950,)
    with open(os.devnull, "w") as f:
        print("nothing", file=f)
    out = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, check=True)
    assert out.stdout == b"7\n"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(square, range(10)) == [n * n for n in range(10)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(square, range(100))) == 328350
    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert urllib.request.urlopen("http://localhost:%d/" % server.server_port).read() == b"hello"
    server.shutdown()

    async def echo():
        p = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(8)", stdout=asyncio.subprocess.PIPE)
        await asyncio.sleep(0.01)
        return (await p.communicate())[0]

    assert asyncio.run(echo()) == b"8\n"
    got = []
    signal.signal(signal.SIGALRM, lambda *_: got.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not got:
        time.sleep(0.001)
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(square)  # a function made at run time
    assert call(12) == 144
    ssl.create_default_context()
    uuid.uuid4(), random.SystemRandom().random(), platform.platform(), os.cpu_count(), os.getloadavg(), socket.gethostname()
    print(json.dumps({"sha256": hashlib.sha256(b"x").hexdigest()[:8], "user": os.getuid()}))


if __name__ == "__main__":
    main()
