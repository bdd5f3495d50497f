package vhostvsock

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The memory of the fake guest: rings first, buffers behind them.
const (
	memSize  = 16 << 20
	memGPA   = 0x4000_0000
	memUVA   = 0x7f00_0000_0000
	ringSize = 64
	ringStep = 0x10000
	availOff = 0x4000
	usedOff  = 0x8000
	rxBufs   = 0x100000
	txBufs   = 0x800000
	rxBuf    = 4096 // as Linux has it
	testCID  = 42
	patience = 20 * time.Second
)

// A frontend is QEMU and the driver of a guest: it speaks the real protocol over the real socket.
type frontend struct {
	t          testing.TB
	u          *net.UnixConn
	mem        []byte
	memfd      int
	kick, call [2]*os.File
	avail      [2]uint16
	used       [2]uint16
	ack        bool // ask for a reply to every request
}

func newDevice(t testing.TB, dial func(uint32) (net.Conn, error)) *Device {
	t.Helper()
	before := runtime.NumGoroutine()
	d, err := Listen(Config{CID: testCID, Socket: filepath.Join(t.TempDir(), "s"), Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if len(d.all) != 0 || len(d.conns) != 0 {
			t.Errorf("%d connections are left", len(d.all))
		}
		// Goroutines that were told to end may take a moment to be gone.
		deadline := time.Now().Add(patience)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			buf := make([]byte, 1<<20)
			t.Errorf("%d goroutines of %d are left:\n%s", n, before, buf[:runtime.Stack(buf, true)])
		}
	})
	return d
}

// connect makes a front-end without rings.
func connect(t testing.TB, d *Device) *frontend {
	t.Helper()
	c, err := net.Dial("unix", d.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &frontend{t: t, u: c.(*net.UnixConn), ack: true}
	f.u.SetDeadline(time.Now().Add(patience))
	if f.memfd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(f.memfd, memSize); err != nil {
		t.Fatal(err)
	}
	if f.mem, err = unix.Mmap(f.memfd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	for i := range f.kick {
		f.kick[i], f.call[i] = newEventfd(t), newEventfd(t)
	}
	t.Cleanup(func() {
		f.u.Close()
		for i := range f.kick {
			f.kick[i].Close()
			f.call[i].Close()
		}
		unix.Close(f.memfd)
		unix.Munmap(f.mem)
	})
	return f
}

// plug makes a front-end whose guest has a driver.
func plug(t testing.TB, d *Device) *frontend {
	t.Helper()
	f := connect(t, d)
	f.negotiate()
	f.startRings()
	return f
}

func newEventfd(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "eventfd")
}

func u64s(v ...uint64) (b []byte) {
	for _, n := range v {
		b = le.AppendUint64(b, n)
	}
	return b
}

func u32s(v ...uint32) (b []byte) {
	for _, n := range v {
		b = le.AppendUint32(b, n)
	}
	return b
}

func (f *frontend) write(req, flags uint32, payload []byte, fds ...int) error {
	b := append(u32s(req, 1|flags, uint32(len(payload))), payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.u.WriteMsgUnix(b, oob, nil)
	return err
}

func (f *frontend) read() (req uint32, payload []byte, err error) {
	var h [12]byte
	if _, err := readFull(f.u, h[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, le.Uint32(h[8:]))
	_, err = readFull(f.u, payload)
	return le.Uint32(h[:]), payload, err
}

// request asks what has an answer.
func (f *frontend) request(req uint32, payload []byte) []byte {
	f.t.Helper()
	if err := f.write(req, 0, payload); err != nil {
		f.t.Fatalf("request %d: %v", req, err)
	}
	got, p, err := f.read()
	if err != nil || got != req {
		f.t.Fatalf("request %d: answer to %d, %v", req, got, err)
	}
	return p
}

// set asks what has none but the acknowledgement; the error is a refusal.
func (f *frontend) try(req uint32, payload []byte, fds ...int) error {
	if err := f.write(req, 8, payload, fds...); err != nil {
		return err
	}
	_, p, err := f.read()
	if err == nil && le.Uint64(p) != 0 {
		err = fmt.Errorf("request %d was refused", req)
	}
	return err
}

func (f *frontend) set(req uint32, payload []byte, fds ...int) {
	f.t.Helper()
	if err := f.try(req, payload, fds...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *frontend) negotiate() {
	f.t.Helper()
	feat := le.Uint64(f.request(getFeatures, nil))
	proto := le.Uint64(f.request(getProtocolFeatures, nil))
	f.set(setProtocolFeatures, u64s(proto))
	f.set(setOwner, nil)
	f.set(setFeatures, u64s(feat))
	if cid := f.request(getConfig, append(u32s(0, 8, 0), make([]byte, 8)...)); le.Uint64(cid[12:]) != testCID {
		f.t.Errorf("configuration space says CID %d", le.Uint64(cid[12:]))
	}
}

func (f *frontend) memoryTable(n int) {
	f.t.Helper()
	table := u32s(uint32(n), 0)
	var fds []int
	part := uint64(memSize / n)
	for i := range uint64(n) {
		table = append(table, u64s(memGPA+i*part, part, memUVA+i*part, i*part)...)
		fds = append(fds, f.memfd)
	}
	f.set(setMemTable, table, fds...)
}

func (f *frontend) startRings() {
	f.t.Helper()
	f.memoryTable(1)
	for i := range uint32(2) {
		base := uint64(memUVA + ringStep*uint64(i))
		f.set(setVringNum, u32s(i, ringSize))
		f.set(setVringBase, u32s(i, 0))
		f.set(setVringAddr, append(u32s(i, 0), u64s(base, base+usedOff, base+availOff, 0)...))
		f.set(setVringKick, u64s(uint64(i)), int(f.kick[i].Fd()))
		f.set(setVringCall, u64s(uint64(i)), int(f.call[i].Fd()))
		f.set(setVringEnable, u32s(i, 1))
	}
	for i := range uint16(ringSize) {
		f.postRx(i)
	}
}

func (f *frontend) desc(ring int, i uint16, addr uint64, size uint32, flags, next uint16) {
	d := f.mem[ringStep*ring+16*int(i):]
	le.PutUint64(d, addr)
	le.PutUint32(d[8:], size)
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

// offer puts a chain into the available ring and notifies.
func (f *frontend) offer(ring int, head uint16) {
	a := f.mem[ringStep*ring+availOff:]
	le.PutUint16(a[4+2*int(f.avail[ring]%ringSize):], head)
	f.avail[ring]++
	f.publish(ring)
}

func (f *frontend) publish(ring int) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&f.mem[ringStep*ring+availOff])), uint32(f.avail[ring])<<16)
	f.kick[ring].Write(u64s(1))
}

// take waits for a chain to come back.
func (f *frontend) take(ring int) (head uint16, n uint32, err error) {
	u := f.mem[ringStep*ring+usedOff:]
	for {
		idx := uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&u[0]))) >> 16)
		if idx != f.used[ring] {
			e := u[4+8*int(f.used[ring]%ringSize):]
			f.used[ring]++
			return uint16(le.Uint32(e)), le.Uint32(e[4:]), nil
		}
		f.call[ring].SetReadDeadline(time.Now().Add(patience))
		if _, err := f.call[ring].Read(make([]byte, 8)); err != nil {
			return 0, 0, err
		}
	}
}

func (f *frontend) postRx(i uint16) {
	f.desc(rxRing, i, memGPA+rxBufs+rxBuf*uint64(i), rxBuf, descWrite, 0)
	f.offer(rxRing, i)
}

// receive waits for the next packet to the guest and gives its buffer back.
func (f *frontend) receive() packet {
	f.t.Helper()
	head, n, err := f.take(rxRing)
	if err != nil {
		f.t.Fatalf("no packet: %v", err)
	}
	b := append([]byte(nil), f.mem[rxBufs+rxBuf*int(head):][:n]...)
	f.postRx(head)
	p, err := parsePacket(b)
	if err != nil {
		f.t.Fatal(err)
	}
	p.key = key{guest: p.key.host, host: p.key.guest} // the header names the sender first
	return p
}

func (f *frontend) want(op uint16, k key) packet {
	f.t.Helper()
	p := f.receive()
	if p.op != op || p.key != k || p.src != hostCID || p.dst != testCID || p.kind != typeStream {
		f.t.Fatalf("packet %+v, want operation %d of %v", p, op, k)
	}
	return p
}

// send sends a packet as one chain of descriptors of the given sizes; the last takes the rest.
func (f *frontend) send(p packet, sizes ...int) {
	f.t.Helper()
	h := p.header(len(p.data))
	le.PutUint32(h[16:], p.guest)
	le.PutUint32(h[20:], p.host)
	f.sendRaw(append(h[:], p.data...), sizes...)
}

func (f *frontend) sendRaw(b []byte, sizes ...int) {
	f.t.Helper()
	copy(f.mem[txBufs:], b)
	off := 0
	for i := 0; ; i++ {
		if i == len(sizes) || off+sizes[i] >= len(b) {
			f.desc(txRing, uint16(i), memGPA+txBufs+uint64(off), uint32(len(b)-off), 0, 0)
			break
		}
		f.desc(txRing, uint16(i), memGPA+txBufs+uint64(off), uint32(sizes[i]), descNext, uint16(i+1))
		off += sizes[i]
	}
	f.offer(txRing, 0)
	if _, _, err := f.take(txRing); err != nil {
		f.t.Fatalf("packet was not taken: %v", err)
	}
}

func pkt(k key, op uint16, data []byte) packet {
	return packet{key: k, src: testCID, dst: hostCID, kind: typeStream, op: op, alloc: 256 << 10, data: data}
}

// open connects from the guest.
func (f *frontend) open(k key) {
	f.t.Helper()
	f.send(pkt(k, opRequest, nil))
	f.want(opResponse, k)
}

// failure waits for the device to give up.
func failure(t testing.TB, d *Device, want string) {
	t.Helper()
	select {
	case err := <-d.Fails():
		if !strings.Contains(err.Error(), want) {
			t.Errorf("failed with %v, want %q", err, want)
		}
	case <-time.After(patience):
		t.Fatalf("device did not fail, want %q", want)
	}
}

func readFull(c net.Conn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k, err := c.Read(b[n:])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
