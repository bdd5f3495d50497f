package vhostvsock

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// maxMessage bounds the payload of a message; the largest of ours is a memory table, 264 bytes.
const maxMessage = 4096

// A message is one request; its files are closed unless file takes them.
type message struct {
	req, flags uint32
	payload    []byte
	fds        []int
}

func (m *message) String() string   { return fmt.Sprintf("request %d", m.req) }
func (m *message) needsReply() bool { return m.flags&8 != 0 }

// readMessage reads one request and its files. io.EOF means that the front-end left.
func readMessage(u *net.UnixConn) (*message, error) {
	var h [12]byte
	oob := make([]byte, unix.CmsgSpace(4*maxRegions))
	n, oobn, flags, _, err := u.ReadMsgUnix(h[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	m := new(message)
	if err := m.readFiles(oob[:oobn]); err != nil {
		return nil, err
	}
	err = m.readRest(u, h, n, flags)
	if err != nil {
		m.closeFiles()
		return nil, err
	}
	return m, nil
}

func (m *message) readRest(u *net.UnixConn, h [12]byte, n, flags int) error {
	if flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("vhost-user: more than %d files in one message", maxRegions)
	}
	if err := readRest(u, h[n:]); err != nil {
		return fmt.Errorf("vhost-user header: %w", err)
	}
	m.req, m.flags = le.Uint32(h[:]), le.Uint32(h[4:])
	size := le.Uint32(h[8:])
	if m.flags&3 != 1 || size > maxMessage {
		return fmt.Errorf("vhost-user %s: flags %#x, %d bytes, at most %d", m, m.flags, size, maxMessage)
	}
	m.payload = make([]byte, size)
	if err := readRest(u, m.payload); err != nil {
		return fmt.Errorf("vhost-user %s: %w", m, err)
	}
	return nil
}

// readRest fills b. An end in the middle of a message is not the end of a session.
func readRest(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (m *message) readFiles(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("vhost-user: %w", err)
	}
	for _, c := range msgs {
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			continue // no files in it
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

func (m *message) closeFiles() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

func (m *message) reply(w io.Writer, payload []byte) error {
	b := le.AppendUint32(nil, m.req)
	b = le.AppendUint32(b, 1|4) // version, reply
	b = le.AppendUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// u64 reads a payload that is one number.
func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, fmt.Errorf("payload of %d bytes, want 8", len(m.payload))
	}
	return le.Uint64(m.payload), nil
}

// vring reads a payload that is a ring's number and another.
func (m *message) vring() (index int, n uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, fmt.Errorf("payload of %d bytes, want 8", len(m.payload))
	}
	index, err = ringIndex(le.Uint32(m.payload))
	return index, le.Uint32(m.payload[4:]), err
}

// vringFile reads a payload that is a ring's number and, unless its bit 8 is set, comes with one file.
func (m *message) vringFile() (index, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, -1, err
	}
	if index, err = ringIndex(uint32(v & 0xff)); err != nil {
		return 0, -1, err
	}
	want := 1
	if v&0x100 != 0 {
		want = 0
	}
	if len(m.fds) != want {
		return 0, -1, fmt.Errorf("%d files, want %d", len(m.fds), want)
	}
	if want == 0 {
		return index, -1, nil
	}
	fd, m.fds = m.fds[0], nil
	return index, fd, nil
}
