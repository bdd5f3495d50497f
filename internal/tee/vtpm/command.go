package vtpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The few commands of the TPM 2.0 Library (Part 3) that a guest of a paravisor needs. They are written here, because a
// library that knows all commands adds 450 KB to PID 1; the tests hold them against one, and against swtpm.
const (
	ccNVUndefineSpace = 0x122
	ccNVDefineSpace   = 0x12A
	ccNVWrite         = 0x137
	ccNVRead          = 0x14E
	ccQuote           = 0x158
	ccNVReadPublic    = 0x169
	ccPCRRead         = 0x17E
	ccPCRExtend       = 0x182
)

const (
	tagNoSessions = 0x8001
	tagSessions   = 0x8002
	rhOwner       = 0x40000001
	rsPassword    = 0x40000009 // TPM_RS_PW: an empty password, which the owner and the keys of a paravisor have
	algSHA256     = 0x000B
	algRSASSA     = 0x0014
	rcHandle      = 0x08B   // TPM_RC_HANDLE; which handle it is stands in bits 8 to 11
	rcMask        = 0x0BF   // of an error with such bits
	maxAnswer     = 4 << 10 // bytes; what the kernel's driver takes
)

// A Transport carries one command at a time to a TPM, and its answer back.
type Transport interface {
	Send(command []byte) (answer []byte, err error)
}

// A rcError is a TPM's own word for why it does not do something.
type rcError uint32

func (e rcError) Error() string { return fmt.Sprintf("TPM answers with code %#x", uint32(e)) }

// noHandle says that what a command was about is not there.
func noHandle(err error) bool {
	e, ok := errors.AsType[rcError](err)
	return ok && uint32(e)&rcMask == rcHandle && uint32(e)>>12 == 0
}

// A command is built up in the order of its parts: handles, then parameters.
type command struct {
	code   uint32
	auth   bool // the first handle is authorised with an empty password
	handle []byte
	param  []byte
}

func (c *command) handles(h ...uint32) *command {
	for _, v := range h {
		c.handle = binary.BigEndian.AppendUint32(c.handle, v)
	}
	return c
}

func (c *command) u16(v ...uint16) *command {
	for _, v := range v {
		c.param = binary.BigEndian.AppendUint16(c.param, v)
	}
	return c
}

func (c *command) u32(v uint32) *command {
	c.param = binary.BigEndian.AppendUint32(c.param, v)
	return c
}

func (c *command) raw(b []byte) *command {
	c.param = append(c.param, b...)
	return c
}

// sized adds a TPM2B: the length, then the bytes.
func (c *command) sized(b []byte) *command { return c.u16(uint16(len(b))).raw(b) }

// pcrs adds a TPML_PCR_SELECTION of one bank.
func (c *command) pcrs(slots ...uint) *command {
	var bits [3]byte
	for _, s := range slots {
		bits[s/8] |= 1 << (s % 8)
	}
	return c.u32(1).u16(algSHA256).raw(append([]byte{byte(len(bits))}, bits[:]...))
}

func (c *command) bytes() []byte {
	tag, body := uint16(tagNoSessions), c.handle
	if c.auth {
		tag = tagSessions
		body = binary.BigEndian.AppendUint32(body, 9)
		body = binary.BigEndian.AppendUint32(body, rsPassword)
		body = append(body, 0, 0, 0, 0, 0) // no nonce, no attributes, an empty password
	}
	body = append(body, c.param...)
	b := binary.BigEndian.AppendUint16(nil, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(body)))
	b = binary.BigEndian.AppendUint32(b, c.code)
	return append(b, body...)
}

// do sends the command and gives the parameters of the answer.
func (c *command) do(t Transport) (*answer, error) {
	b, err := t.Send(c.bytes())
	if err != nil {
		return nil, err
	}
	a := &answer{b: b}
	tag, size, code := a.u16(), a.u32(), a.u32()
	switch {
	case a.short || int64(size) != int64(len(b)) || len(b) > maxAnswer:
		return nil, fmt.Errorf("TPM answers with %d bytes that are no answer", len(b))
	case code != 0:
		return nil, rcError(code)
	case tag != tagSessions && tag != tagNoSessions || c.auth != (tag == tagSessions):
		return nil, fmt.Errorf("TPM answers with tag %#x", tag)
	}
	if c.auth {
		n := a.u32()
		params := a.take(int(min(n, maxAnswer)))
		if a.short {
			return nil, errors.New("TPM answers with fewer parameters than it says")
		}
		a = &answer{b: params} // the session behind them is a password's, and says nothing
	}
	return a, nil
}

// An answer is read from its front; once it was asked for more than there is it gives nothing more.
type answer struct {
	b     []byte
	short bool
}

func (a *answer) take(n int) []byte {
	if a.short || n > len(a.b) {
		a.short = true
		return nil
	}
	out := a.b[:n:n]
	a.b = a.b[n:]
	return out
}

func (a *answer) u16() uint16 {
	var b [2]byte
	copy(b[:], a.take(2))
	return binary.BigEndian.Uint16(b[:])
}

func (a *answer) u32() uint32 {
	var b [4]byte
	copy(b[:], a.take(4))
	return binary.BigEndian.Uint32(b[:])
}

func (a *answer) sized() []byte { return a.take(int(a.u16())) }

// end is an error unless the answer was read to its end and no further.
func (a *answer) end() error {
	if a.short || len(a.b) > 0 {
		return errors.New("TPM answers with parameters of another length")
	}
	return nil
}

// A device is the kernel's resource manager. It is used without Go's poller, for which the driver would do its work in the
// background: read would then say that there is nothing.
type device int

func openDevice(file string) (device, error) {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", file, err)
	}
	return device(fd), nil
}

func (d device) Close() error { return unix.Close(int(d)) }

func (d device) Send(command []byte) ([]byte, error) {
	if _, err := again(func() (int, error) { return unix.Write(int(d), command) }); err != nil { // all of it, or an error
		return nil, fmt.Errorf("command to the TPM: %w", err)
	}
	b := make([]byte, maxAnswer)
	n, err := again(func() (int, error) { return unix.Read(int(d), b) })
	if err != nil {
		return nil, fmt.Errorf("answer of the TPM: %w", err)
	}
	return b[:n], nil
}

func again(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
