package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

// writerEnv makes the test binary a writer that nothing but a signal stops: the directory, and the identity or nothing.
const writerEnv = "AMPOULE_STORE_WRITER"

func TestMain(m *testing.M) {
	if dir, id, ok := strings.Cut(os.Getenv(writerEnv), "|"); ok {
		fmt.Println(writer(dir, id))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// value is what the nth write writes: its number, filler whose length varies, and the digest of both.
func value(n uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, n)
	b = append(b, bytes.Repeat([]byte{byte(n)}, int(n*7919%30000))...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func number(b []byte) (uint64, bool) {
	if len(b) < 40 {
		return 0, false
	}
	n := binary.BigEndian.Uint64(b)
	return n, bytes.Equal(b, value(n))
}

func writer(dir, identity string) error {
	var o Options
	if identity != "" {
		id, err := age.ParseX25519Identity(identity)
		if err != nil {
			return err
		}
		o.Identity = id
	}
	s, err := Open(dir, o)
	if err != nil {
		return err
	}
	var n uint64
	if b, err := s.Get(key); err == nil {
		n, _ = number(b)
	}
	for {
		n++
		if err := s.Put(key, value(n)); err != nil {
			return err
		}
		fmt.Println(n) // from here on the write is a promise
	}
}

// Writers are killed in the middle of their work, again and again. What is read afterwards is one whole value, never
// older than the last that was acknowledged, and nothing else is left.
func TestKill(t *testing.T) {
	id := newX25519(t)
	for _, c := range []struct {
		name     string
		identity string
		o        Options
		tree     string
	}{{"clear", "", Options{}, "keys/"}, {"sealed", id.String(), Options{Identity: id}, "sealed/"}} {
		t.Run(c.name, func(t *testing.T) {
			dir, total, last := t.TempDir(), uint64(0), uint64(0)
			for range 25 {
				acked := killWriter(t, dir+"|"+c.identity, time.Duration(rand.IntN(30))*time.Millisecond)
				s, err := Open(dir, c.o)
				if err != nil {
					t.Fatal(err)
				}
				b, err := s.Get(key)
				if err != nil {
					t.Fatal(err)
				}
				n, whole := number(b)
				if !whole || n < acked || n > acked+1 || n < last {
					t.Fatalf("read number %d (whole: %v), acknowledged %d, read before %d", n, whole, acked, last)
				}
				if left := files(t, dir); len(left) != 2 || left[1] != c.tree+key {
					t.Fatalf("files after opening: %q", left)
				}
				s.Close()
				total, last = n, n
			}
			t.Logf("25 kills, %d writes", total)
		})
	}
}

// killWriter lets a writer write for a while after its first acknowledged write, and gives the last one.
func killWriter(t *testing.T, env string, after time.Duration) (acked uint64) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), writerEnv+"="+env)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var kill *time.Timer
	for lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &acked); err != nil {
			cmd.Process.Kill()
			t.Fatalf("writer says %q", lines.Text())
		}
		if kill == nil {
			kill = time.AfterFunc(after, func() { cmd.Process.Kill() }) // SIGKILL
		}
	}
	cmd.Wait()
	if acked == 0 {
		t.Fatal("the writer wrote nothing")
	}
	return acked
}
