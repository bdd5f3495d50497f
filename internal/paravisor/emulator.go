package paravisor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Commands of the control channel of QEMU's TPM back-end "emulator", which is swtpm's; numbers are big-endian.
const (
	getCapability    = 0x01
	initialise       = 0x02
	shutdown         = 0x03
	getEstablished   = 0x04
	setLocality      = 0x05
	resetEstablished = 0x0B
	stop             = 0x0E
	setDataFD        = 0x10
	setBufferSize    = 0x11
	capabilities     = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<7 | 1<<10 | 1<<12 | 1<<13 // of the above, as QEMU wants them
	maxCommand       = 4096                                                     // bytes, of a TPM command or answer
)

// controls gives the length of the body of each command and its answer, bytes. A result of 0 is success.
var controls = map[uint32]struct {
	body   int
	answer []byte
}{
	getCapability:    {0, binary.BigEndian.AppendUint64(nil, capabilities)},
	initialise:       {4, make([]byte, 4)},
	shutdown:         {0, make([]byte, 4)},
	getEstablished:   {0, make([]byte, 8)},
	setLocality:      {4, make([]byte, 4)},
	resetEstablished: {4, make([]byte, 4)},
	stop:             {0, make([]byte, 4)},
	setDataFD:        {0, make([]byte, 4)},
	setBufferSize:    {4, append(make([]byte, 4), 0, 0, maxCommand>>8, 0, 0, 0, maxCommand>>8, 0, 0, 0, maxCommand>>8, 0)},
}

// Emulate plays the TPM of one QEMU (-tpmdev emulator) that connects to l, until QEMU closes the connection or l is closed.
// Commands go through tpm; it has been started already, as a paravisor does before the guest begins.
func Emulate(l *net.UnixListener, tpm transport.TPM) (err error) {
	conn, err := l.AcceptUnix()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	var data sync.WaitGroup
	var broken error // of the one channel that QEMU opens
	defer func() {
		data.Wait()
		err = errors.Join(err, broken)
	}()
	for {
		fd, err := control(conn)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) { // QEMU is gone
			return nil
		}
		if err != nil {
			return fmt.Errorf("TPM control channel: %w", err)
		}
		if fd != nil {
			data.Go(func() {
				defer fd.Close()
				broken = pump(fd, tpm)
			})
		}
	}
}

// control answers one command; QEMU sends a descriptor along with setDataFD.
func control(conn *net.UnixConn) (fd *os.File, err error) {
	var head [4]byte
	rights := make([]byte, syscall.CmsgSpace(4))
	n, nRights, _, _, err := conn.ReadMsgUnix(head[:], rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return nil, err
	}
	command := binary.BigEndian.Uint32(head[:])
	c, ok := controls[command]
	if !ok {
		return nil, fmt.Errorf("command %#x was not offered", command)
	}
	if command == setDataFD {
		if fd, err = received(rights[:nRights]); err != nil {
			return nil, err
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, c.body)); err != nil {
		return fd, err
	}
	_, err = conn.Write(c.answer)
	return fd, err
}

func received(rights []byte) (*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("no descriptor for the data"))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("no descriptor for the data"))
	}
	return os.NewFile(uintptr(fds[0]), "TPM data"), nil
}

// pump carries commands until either side is gone. The guest's firmware starts the TPM, which a paravisor has done.
func pump(guest io.ReadWriter, tpm transport.TPM) error {
	for {
		command := make([]byte, 10)
		if _, err := io.ReadFull(guest, command); err != nil {
			return nil // the guest is gone
		}
		size := binary.BigEndian.Uint32(command[2:])
		if size < 10 || size > maxCommand {
			return fmt.Errorf("TPM command of %d bytes", size)
		}
		command = append(command, make([]byte, size-10)...)
		if _, err := io.ReadFull(guest, command[10:]); err != nil {
			return nil
		}
		answer := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0}
		if binary.BigEndian.Uint32(command[6:]) != uint32(tpm2.TPMCCStartup) {
			var err error
			if answer, err = tpm.Send(command); err != nil {
				return fmt.Errorf("TPM: %w", err)
			}
		}
		if _, err := guest.Write(answer); err != nil {
			return nil
		}
	}
}
