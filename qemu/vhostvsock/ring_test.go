package vhostvsock

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// usedPending is how many chains have come back and were not taken.
func (f *frontend) usedPending(ring int) uint16 {
	return load16(f.mem, ringStep*ring+usedOff+2) - f.used[ring]
}

func TestBadChainsEndTheDevice(t *testing.T) {
	for name, c := range map[string]struct {
		bad  func(f *frontend)
		want string
	}{
		"a loop": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 1, descNext, 1)
			f.desc(txRing, 1, memGPA, 1, descNext, 0)
			f.offer(txRing, 0)
		}, "loop"},
		"a loop of empty descriptors": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 0, descNext, 0)
			f.offer(txRing, 0)
		}, "loop"},
		"a head outside the table": {func(f *frontend) { f.offer(txRing, ringSize) }, "descriptor 64"},
		"a next outside the table": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 44, descNext, 0xffff)
			f.offer(txRing, 0)
		}, "descriptor 65535"},
		"an address below memory": {func(f *frontend) {
			f.desc(txRing, 0, memGPA-1, 44, 0, 0)
			f.offer(txRing, 0)
		}, "outside guest memory"},
		"a range over the end of memory": {func(f *frontend) {
			f.desc(txRing, 0, memGPA+memSize-43, 44, 0, 0)
			f.offer(txRing, 0)
		}, "outside guest memory"},
		"an address that overflows": {func(f *frontend) {
			f.desc(txRing, 0, 1<<64-1, 44, 0, 0)
			f.offer(txRing, 0)
		}, "outside guest memory"},
		"an indirect descriptor": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 32, descIndirect, 0)
			f.offer(txRing, 0)
		}, "indirect"},
		"a descriptor to be written in the transmit ring": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 44, descWrite, 0)
			f.offer(txRing, 0)
		}, "device-writable"},
		"a chain without end of size": {func(f *frontend) {
			for i := range uint16(ringSize) {
				f.desc(txRing, i, memGPA, 1<<20, descNext, i+1)
			}
			f.offer(txRing, 0)
		}, "more than"},
		"sizes that overflow": {func(f *frontend) {
			f.desc(txRing, 0, memGPA, 1<<32-1, descNext, 1)
			f.desc(txRing, 1, memGPA, 1<<32-1, 0, 0)
			f.offer(txRing, 0)
		}, "more than"},
		"an index that leaps": {func(f *frontend) {
			f.avail[txRing] += ringSize + 1
			f.publish(txRing)
		}, "available index"},
		"a receive buffer without room": {func(f *frontend) {
			for i := range uint16(ringSize) {
				f.desc(rxRing, i, memGPA+rxBufs, headerSize, descWrite, 0)
			}
			f.send(pkt(testKey, opRW, nil))
		}, "buffer of 44 bytes"},
		"a receive buffer to be read": {func(f *frontend) {
			for i := range uint16(ringSize) {
				f.desc(rxRing, i, memGPA+rxBufs, rxBuf, 0, 0)
			}
			f.send(pkt(testKey, opRW, nil))
		}, "device-writable"},
	} {
		t.Run(name, func(t *testing.T) {
			d, f, e := setup(t)
			other := key{guest: 9, host: 1024}
			f.open(other)
			host := <-e
			c.bad(f)
			failure(t, d, c.want)
			if _, err := host.Read(make([]byte, 1)); err == nil {
				t.Error("a connection outlived the device")
			}
		})
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	ringAt := func(desc, used, avail uint64) []byte {
		return append(u32s(0, 0), u64s(memUVA+desc, memUVA+used, memUVA+avail, 0)...)
	}
	region := func(gpa, size, uva, off uint64) []byte { return append(u32s(1, 0), u64s(gpa, size, uva, off)...) }
	for name, c := range map[string]struct {
		req     uint32
		payload []byte
		files   int
		want    string
	}{
		"an unknown request":             {99, nil, 0, "not known"},
		"features that were not offered": {setFeatures, u64s(1 << 28), 0, "features"},
		"features cut short":             {setFeatures, u32s(1), 0, "payload"},
		"no regions":                     {setMemTable, u32s(0, 0), 0, "memory table"},
		"nine regions":                   {setMemTable, append(u32s(9, 0), make([]byte, 9*32)...), 8, "memory table"},
		"a count without regions":        {setMemTable, u32s(1, 0), 1, "memory table"},
		"a region without a file":        {setMemTable, region(0, 4096, 0, 0), 0, "memory table"},
		"a region behind its file":       {setMemTable, region(0, memSize+1, 0, 0), 1, "memory region"},
		"an offset that overflows":       {setMemTable, region(0, 4096, 0, 1<<64-4096), 1, "memory region"},
		"an address that overflows":      {setMemTable, region(1<<64-4096, 8192, 0, 0), 1, "memory region"},
		"an empty region":                {setMemTable, region(0, 0, 0, 0), 1, "memory region"},
		"a ring that is not there":       {setVringNum, u32s(2, 64), 0, "ring 2"},
		"a ring of no power of two":      {setVringNum, u32s(0, 63), 0, "power of two"},
		"a ring that is too large":       {setVringNum, u32s(0, 2*maxRing), 0, "power of two"},
		"a base that is no index":        {setVringBase, u32s(0, 1<<16), 0, "power of two"},
		"rings outside memory":           {setVringAddr, ringAt(memSize, 0, 0), 0, "outside"},
		"a used ring over the end":       {setVringAddr, ringAt(0, memSize-4, 0x4000), 0, "outside"},
		"a used ring off its alignment":  {setVringAddr, ringAt(0, 0x8002, 0x4000), 0, "aligned"},
		"an available ring off its own":  {setVringAddr, ringAt(0, 0x8000, 0x4001), 0, "aligned"},
		"an address with logging":        {setVringAddr, append(u32s(0, 1), make([]byte, 32)...), 0, "logging"},
		"a start before the addresses":   {setVringKick, u64s(1), 1, "before it has an address"},
		"a start by polling":             {setVringKick, u64s(0x100), 0, "polled"},
		"a start with two files":         {setVringKick, u64s(0), 2, "2 files"},
		"a start without a file":         {setVringKick, u64s(0), 0, "0 files"},
		"a call with polling and file":   {setVringCall, u64s(0x100), 1, "1 files"},
		"configuration that is longer":   {getConfig, append(u32s(0, 9, 0), make([]byte, 9)...), 0, "configuration"},
		"configuration that overflows":   {getConfig, append(u32s(1<<32-1, 8, 0), make([]byte, 8)...), 0, "configuration"},
		"configuration without room":     {getConfig, u32s(0, 8, 0), 0, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, nil)
			f := connect(t, d)
			f.memoryTable(1)
			f.set(setVringNum, u32s(0, ringSize))
			before := openFiles(t)
			var fds []int
			for range c.files {
				fds = append(fds, f.memfd)
			}
			if err := f.try(c.req, c.payload, fds...); err == nil {
				t.Error("was not refused")
			}
			failure(t, d, c.want)
			// The session has closed its socket and whatever came with the message.
			deadline := time.Now().Add(patience)
			for len(openFiles(t)) >= len(before) && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if after := openFiles(t); len(after) >= len(before) {
				t.Errorf("open files: %v, before: %v", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) (names []string) {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			names = append(names, l)
		}
	}
	slices.Sort(names)
	return names
}

func TestHeadersThatAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"a version to come":     u32s(setOwner, 2, 0),
		"a payload over 4 KiB":  u32s(setOwner, 1, maxMessage+1),
		"a header that is cut":  u32s(setOwner, 1),
		"a payload that is cut": append(u32s(setOwner, 1, 8), 0),
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, nil)
			f := connect(t, d)
			f.u.Write(b)
			f.u.CloseWrite()
			failure(t, d, "vhost-user")
		})
	}
	t.Run("more files than a message has", func(t *testing.T) {
		d := newDevice(t, nil)
		f := connect(t, d)
		fds := slices.Repeat([]int{f.memfd}, maxRegions+8)
		if err := f.write(setOwner, 8, nil, fds...); err != nil {
			t.Fatal(err)
		}
		failure(t, d, "files")
	})
}

func TestMemoryTableChangesUnderRunningRings(t *testing.T) {
	_, f, e := setup(t)
	f.open(testKey)
	host := <-e
	for n := 1; n <= maxRegions; n *= 2 {
		f.memoryTable(n)
		want := pattern(1000 + n)
		f.send(pkt(testKey, opRW, want), headerSize)
		got := make([]byte, len(want))
		if _, err := readFull(host, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("with %d regions: %v", n, err)
		}
		host.Write(want)
		if p := f.want(opRW, testKey); !bytes.Equal(p.data, want) {
			t.Fatalf("with %d regions: other bytes", n)
		}
	}
}

func TestRingsStopAndGoOn(t *testing.T) {
	_, f, e := setup(t)
	f.open(testKey)
	host := <-e
	for i := range uint32(2) {
		base := f.request(getVringBase, u32s(i, 0))
		if got := le.Uint32(base[4:]); got != uint32(f.used[i]) {
			t.Errorf("ring %d stopped at %d, want %d", i, got, f.used[i])
		}
		addr := uint64(memUVA + ringStep*uint64(i))
		f.set(setVringNum, u32s(i, ringSize))
		f.set(setVringBase, base)
		f.set(setVringAddr, append(u32s(i, 0), u64s(addr, addr+usedOff, addr+availOff, 0)...))
		f.set(setVringCall, u64s(uint64(i)), int(f.call[i].Fd()))
		f.set(setVringKick, u64s(uint64(i)), int(f.kick[i].Fd()))
	}
	host.Write([]byte("on"))
	if p := f.want(opRW, testKey); string(p.data) != "on" {
		t.Errorf("%q", p.data)
	}
	// A ring that is disabled keeps what comes until it is enabled.
	f.set(setVringEnable, u32s(rxRing, 0))
	host.Write([]byte("later"))
	if n := f.usedPending(rxRing); n != 0 {
		t.Errorf("%d buffers of a disabled ring were used", n)
	}
	f.set(setVringEnable, u32s(rxRing, 1))
	if p := f.want(opRW, testKey); string(p.data) != "later" {
		t.Errorf("%q", p.data)
	}
}

func TestParseMemoryClosesNothingAndMapsAll(t *testing.T) {
	fd, err := unix.MemfdCreate("m", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 3*4096); err != nil {
		t.Fatal(err)
	}
	table := append(u32s(2, 0), u64s(0x1000, 4096, 0x9000, 4096, 0x2000, 4096, 0xa000, 8192)...)
	m, err := parseMemory(table, []int{fd, fd})
	if err != nil {
		t.Fatal(err)
	}
	defer m.unmap()
	if _, err := m.guest(0x1fff, 2); err == nil {
		t.Error("a range across regions is taken")
	}
	b, err := m.guest(0x2000, 4096)
	if err != nil || len(b) != 4096 || cap(b) != 4096 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := m.user(0x8fff, 1); err == nil {
		t.Error("an address below is taken")
	}
}

// FuzzChain reads a descriptor table and an available ring that are the fuzzer's.
func FuzzChain(f *testing.F) {
	desc := func(addr uint64, size uint32, flags, next uint16) []byte {
		b := append(u64s(addr), u32s(size)...)
		return le.AppendUint16(le.AppendUint16(b, flags), next)
	}
	f.Add(desc(memGPA, 44, 0, 0), uint16(1), uint16(0), false)
	f.Add(slices.Concat(desc(memGPA, 44, 1, 1), desc(memGPA+64, 1<<16, 0, 0)), uint16(1), uint16(0), false)
	f.Add(slices.Concat(desc(memGPA, 44, 3, 1), desc(memGPA, 1, 3, 0)), uint16(1), uint16(0), true)
	f.Fuzz(func(t *testing.T, table []byte, idx, head uint16, writable bool) {
		const n = 8
		mem := make([]byte, 1<<17+64)
		buf := make([]byte, 4096)
		copy(buf, table)
		r := ring{
			mem: memory{{gpa: memGPA, mem: mem}}, num: n, started: true,
			desc: buf[:16*n], avail: buf[1024:][:4+2*n], used: buf[2048:][:4+8*n],
		}
		le.PutUint16(r.avail[2:], idx)
		le.PutUint16(r.avail[4:], head)
		c, err := r.pop(writable)
		if err != nil || c == nil {
			return
		}
		total := 0
		for _, p := range c.parts {
			total += len(p)
		}
		if total != c.size || total > maxChain || len(c.parts) > n {
			t.Fatalf("%d bytes in %d parts, said %d", total, len(c.parts), c.size)
		}
		if writable {
			c.write(make([]byte, c.size))
		} else if got := c.read(nil); len(got) != c.size {
			t.Fatalf("read %d of %d bytes", len(got), c.size)
		}
		r.push(c, c.size)
	})
}

func FuzzParsePacket(f *testing.F) {
	p := pkt(testKey, opRW, []byte("data"))
	h := p.header(4)
	f.Add(append(h[:], "data"...))
	f.Add(h[:43])
	h = p.header(1 << 31)
	f.Add(h[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err == nil && len(p.data) > len(b)-headerSize {
			t.Errorf("%d bytes of data in %d", len(p.data), len(b))
		}
		// Whatever it is, a device without a guest must take it.
		d := &Device{cfg: Config{CID: p.src}, conns: map[key]*conn{}, all: map[*conn]struct{}{}}
		d.work.L = &d.mu
		d.handle(p, err)
		d.handle(p, err)
		d.wg.Wait()
		if len(d.resets) > maxResets {
			t.Errorf("%d resets", len(d.resets))
		}
	})
}
