package vtpm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// A tape records the command and gives one answer.
type tape struct{ command, answer []byte }

func (t *tape) Send(command []byte) ([]byte, error) {
	t.command = bytes.Clone(command)
	return t.answer, nil
}

// TestCommands holds what is sent against what go-tpm sends.
func TestCommands(t *testing.T) {
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	index := tpm2.NamedHandle{Handle: nvUserData}
	all := make([]uint, 24)
	for i := range all {
		all[i] = uint(i)
	}
	selection := func(slots ...uint) tpm2.TPMLPCRSelection {
		return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(slots...)}}}
	}
	key := tpm2.AuthHandle{Handle: tpm2.TPMHandle(akHandle), Name: tpm2.TPM2BName{Buffer: []byte("not sent")}, Auth: tpm2.PasswordAuth(nil)}
	refused := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0} // TPM_RC_INITIALIZE: nobody reads on
	for name, c := range map[string]struct {
		ours   func(chip) error
		theirs func(*tape) error
	}{
		"NV_ReadPublic": {func(c chip) error { _, err := c.size(nvUserData); return err },
			func(s *tape) error {
				_, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(nvUserData)}.Execute(s)
				return err
			}},
		"PCR_Read": {func(c chip) error { _, err := c.pcr(14); return err },
			func(s *tape) error { _, err := tpm2.PCRRead{PCRSelectionIn: selection(14)}.Execute(s); return err }},
		"PCR_Extend": {func(c chip) error { return c.extend(8, [32]byte{1}) },
			func(s *tape) error {
				_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 8, Auth: tpm2.PasswordAuth(nil)},
					Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: append([]byte{1}, make([]byte, 31)...)}}}}.Execute(s)
				return err
			}},
		"Quote": {func(c chip) error { _, err := c.signed([]byte("data"), all); return err },
			func(s *tape) error {
				_, err := tpm2.Quote{SignHandle: key, QualifyingData: tpm2.TPM2BData{Buffer: []byte("data")}, PCRSelect: selection(all...),
					InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})}}.Execute(s)
				return err
			}},
		"NV_DefineSpace": {chip.define, func(s *tape) error {
			_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: tpm2.TPMHandle(nvUserData), NameAlg: tpm2.TPMAlgSHA256,
				DataSize: userData, Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, NT: tpm2.TPMNTOrdinary}})}.Execute(s)
			return err
		}},
		"NV_UndefineSpace": {chip.undefine, func(s *tape) error {
			_, err := tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: index}.Execute(s)
			return err
		}},
		"NV_Read": {func(c chip) error { _, err := c.read(512, 1024); return err }, func(s *tape) error {
			_, err := tpm2.NVRead{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(nvReport)}, Size: 512, Offset: 1024}.Execute(s)
			return err
		}},
		"NV_Write": {func(c chip) error { return c.write([]byte("data")) }, func(s *tape) error {
			_, err := tpm2.NVWrite{AuthHandle: owner, NVIndex: index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte("data")}}.Execute(s)
			return err
		}},
	} {
		ours, theirs := &tape{answer: refused}, &tape{answer: refused}
		if err := c.ours(chip{ours}); !errors.Is(err, rcError(0x100)) {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.theirs(theirs); err == nil {
			t.Errorf("%s: the library took a refusal", name)
		}
		// The library lets the session go on, which means nothing for a password.
		if i := bytes.Index(theirs.command, []byte{0x40, 0, 0, 9, 0, 0, 1}); i >= 0 {
			theirs.command[i+6] = 0
		}
		if !bytes.Equal(ours.command, theirs.command) {
			t.Errorf("%s:\n%x, the library sends\n%x", name, ours.command, theirs.command)
		}
	}
}

// TestAbsent: only the code for a handle that is not there means that there is no paravisor.
func TestAbsent(t *testing.T) {
	for code, absent := range map[uint32]bool{0x18B: true, 0x08B: true, 0x28B: true, 0x10B: false, 0x18C: false, 0x922: false, 0x8018B: false} {
		if got := noHandle(rcError(code)); got != absent {
			t.Errorf("%#x: %t, want %t", code, got, absent)
		}
	}
}

// FuzzAnswer: the TPM is the host's.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0})
	f.Add([]byte{0x80, 0x02, 0, 0, 0, 14, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x80, 0x02, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0})
	f.Add([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0x8b})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := chip{&tape{answer: b}}
		if n, err := c.size(nvReport); err == nil && n > 1<<16 {
			t.Errorf("%d bytes", n)
		}
		if r, err := c.report(); err == nil && len(r) > maxReport {
			t.Errorf("a report of %d bytes", len(r))
		}
		c.pcr(8)
		c.setUserData(make([]byte, userData))
		c.signed(nil, []uint{0})
	})
}
