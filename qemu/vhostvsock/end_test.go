package vhostvsock

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

func TestLastWordsArriveWhenTheFrontEndLeaves(t *testing.T) {
	d, f, e := setup(t)
	f.open(testKey)
	host := <-e
	// Stopped as QEMU stops it, and then once more in the ring without a notification.
	f.send(pkt(testKey, opRW, []byte("last ")))
	p := pkt(testKey, opRW, []byte("words"))
	h := p.header(len(p.data))
	le.PutUint32(h[16:], p.guest)
	le.PutUint32(h[20:], p.host)
	n := copy(f.mem[txBufs:], append(h[:], p.data...))
	f.desc(txRing, 0, memGPA+txBufs, uint32(n), 0, 0)
	f.kick[txRing].Close()
	f.offer(txRing, 0)
	f.u.Close()
	if b, err := io.ReadAll(host); err != nil || string(b) != "last words" {
		t.Errorf("%q, %v", b, err)
	}
	select {
	case err := <-d.Fails():
		t.Errorf("failed with %v", err)
	default:
	}
}

func TestSecondFrontEndIsServedAfterTheFirst(t *testing.T) {
	d, f, e := setup(t)
	f.open(testKey)
	host := <-e
	f.u.Close()
	io.ReadAll(host)
	g := plug(t, d)
	g.open(testKey)
	<-e
}

func TestCloseEndsWhatHangs(t *testing.T) {
	d, f, e := setup(t)
	f.open(testKey)
	host := <-e
	// The host's end reads nothing: its buffer is full and what is left is being drained.
	for range window / maxPayload {
		f.send(pkt(testKey, opRW, pattern(maxPayload)))
	}
	p := pkt(testKey, opShutdown, nil)
	p.flags = shutSend | shutReceive
	f.send(p)
	if _, err := os.Stat(d.cfg.Socket); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
	if _, err := d.Dial(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Dial after Close: %v", err)
	}
	host.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]Config{
		"the host's CID":       {CID: 2, Socket: dir + "/a"},
		"the wildcard CID":     {CID: 1<<32 - 1, Socket: dir + "/a"},
		"a path that is long":  {CID: 3, Socket: dir + "/" + string(bytes.Repeat([]byte("x"), 108))},
		"a folder that is not": {CID: 3, Socket: dir + "/no/a"},
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := Listen(cfg); err == nil {
				d.Close()
				t.Error("no error")
			}
		})
	}
}
