package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/tee/fake"
)

// TestBinding: every binding that is there must hold, whatever else holds; none is enough only where that is allowed.
func TestBinding(t *testing.T) {
	ours, other := sha256.Sum256([]byte("ours")), sha256.Sum256([]byte("other"))
	sum, otherSum := sha512.Sum384([]byte("ours")), sha512.Sum384([]byte("other"))
	lastBit := ours
	lastBit[31] ^= 1
	lastBitOfSum := sum
	lastBitOfSum[47] ^= 1
	var none [32]byte
	for name, c := range map[string]struct {
		hostData [32]byte
		pin      []byte
		unbound  bool
		want     string // "": refused
	}{
		"HOST_DATA is the manifest's":           {ours, nil, false, result.BindLaunch},
		"HOST_DATA is another manifest's":       {other, nil, false, ""},
		"HOST_DATA is off by one bit":           {lastBit, nil, false, ""},
		"HOST_DATA is a lone last bit":          {[32]byte{31: 1}, nil, false, ""},
		"the pin is the manifest's":             {none, sum[:], false, result.BindPinned},
		"the pin is another manifest's":         {none, otherSum[:], false, ""},
		"the pin is off by one bit":             {none, lastBitOfSum[:], false, ""},
		"the pin is of zeros":                   {none, make([]byte, 48), false, ""},
		"the pin is a prefix":                   {none, sum[:47], false, ""},
		"the pin is there and empty":            {none, []byte{}, false, ""},
		"both hold":                             {ours, sum[:], false, result.BindLaunch},
		"HOST_DATA holds and the pin does not":  {ours, otherSum[:], false, ""},
		"the pin holds and HOST_DATA does not":  {other, sum[:], false, ""},
		"nothing is there":                      {none, nil, false, ""},
		"nothing is there, which is allowed":    {none, nil, true, result.BindNone},
		"that allowance does not loosen a hash": {other, nil, true, ""},
		"nor a pin":                             {none, otherSum[:], true, ""},
		"nor one beside a HOST_DATA that holds": {ours, otherSum[:], true, ""},
		"and does not weaken what is reported":  {ours, nil, true, result.BindLaunch},
		"nor with a pin":                        {none, sum[:], true, result.BindPinned},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := bindingOf(c.hostData[:], ours, options(c.pin, c.unbound), sum)
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("binding %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

// bindingOf is both halves of the decision for an SNP guest, which can extend nothing itself.
func bindingOf(hostData []byte, initdata [32]byte, o cmdline.Options, sha384 [48]byte) (string, error) {
	atStart, err := boundAtStart(evidence.Launch{Register: evidence.HostData, InitData: hostData}, initdata, o, sha384)
	if err != nil {
		return "", err
	}
	return binding(atStart, "", evidence.HostData, o)
}

// extendable is a TEE whose one register the guest extends.
type extendable struct {
	fake.Device
	register string
	err      error
	measured [][32]byte
}

func (v *extendable) Measure(_ context.Context, digest [32]byte) (string, error) {
	v.measured = append(v.measured, digest)
	return v.register, v.err
}

// TestRuntimeBinding: what the guest extends counts when the launch fixed nothing; a register that somebody else used does not.
func TestRuntimeBinding(t *testing.T) {
	ours := sha256.Sum256([]byte("ours"))
	zero32, zero48 := make([]byte, 32), make([]byte, 48)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		launch evidence.Launch
		dev    tee.Device
		pinned bool
		want   string // "": refused
	}{
		"PCR 8":                        {evidence.Launch{Register: evidence.PCR8, InitData: zero32}, &extendable{register: evidence.PCR8}, false, result.BindRuntime},
		"PCR 8 in use":                 {evidence.Launch{Register: evidence.PCR8, InitData: ours[:]}, &extendable{register: evidence.PCR8}, false, ""},
		"PCR 8 beside a pin":           {evidence.Launch{Register: evidence.PCR8, InitData: zero32}, &extendable{register: evidence.PCR8}, true, result.BindPinned},
		"PCR 8 cannot be extended":     {evidence.Launch{Register: evidence.PCR8, InitData: zero32}, &extendable{err: broken}, false, ""},
		"nor beside a pin":             {evidence.Launch{Register: evidence.PCR8, InitData: zero32}, &extendable{err: broken}, true, ""},
		"RTMR3":                        {evidence.Launch{Register: evidence.MRConfigID, InitData: zero48}, &extendable{register: evidence.RTMR3}, false, result.BindRuntime},
		"a kernel without RTMR3":       {evidence.Launch{Register: evidence.MRConfigID, InitData: zero48}, &extendable{err: tee.ErrNotFound}, false, ""},
		"a kernel without it, pinned":  {evidence.Launch{Register: evidence.MRConfigID, InitData: zero48}, &extendable{err: tee.ErrNotFound}, true, result.BindPinned},
		"a TEE without such registers": {evidence.Launch{}, &fake.Device{}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sum := sha512.Sum384([]byte("ours"))
			o := options(nil, false)
			if c.pinned {
				o.SHA384 = sum[:]
			}
			atStart, err := boundAtStart(c.launch, ours, o, sum)
			register, got := "", ""
			if err == nil {
				register, err = measure(t.Context(), c.dev, ours)
			}
			if err == nil {
				got, err = binding(atStart, register, c.launch.Register, o)
			}
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("binding %q, error %v; want %q", got, err, c.want)
			}
			if v, ok := c.dev.(*extendable); ok && c.want != "" && (len(v.measured) != 1 || v.measured[0] != ours) {
				t.Errorf("extended with %x, want %x once", v.measured, ours)
			}
		})
	}
	// What fits MRCONFIGID is the digest with zeros behind it, and nothing else.
	padded := append(append([]byte{}, ours[:]...), make([]byte, 16)...)
	if got, err := boundAtStart(evidence.Launch{Register: evidence.MRConfigID, InitData: padded}, ours, options(nil, false), [48]byte{}); got != result.BindLaunch {
		t.Errorf("MRCONFIGID with the padded digest: %q, %v", got, err)
	}
	padded[47] = 1
	if got, err := boundAtStart(evidence.Launch{Register: evidence.MRConfigID, InitData: padded}, ours, options(nil, false), [48]byte{}); err == nil {
		t.Errorf("MRCONFIGID with something behind the digest: %q", got)
	}
}

func options(pin []byte, unbound bool) cmdline.Options {
	o := cmdline.Options{SHA384: pin, Allow: cmdline.Allow{}}
	if unbound {
		o.Allow[cmdline.AllowUnbound] = true
	}
	return o
}

// FuzzBinding holds binding against what it is for, with the digests of a manifest that is itself arbitrary.
func FuzzBinding(f *testing.F) {
	raw := []byte(`{"version":1}`)
	digest, sum := manifest.InitdataDigest(manifest.Wrap(raw)), sha512.Sum384(raw)
	f.Add(raw, digest[:], sum[:], true, false)
	f.Add(raw, digest[:], []byte(nil), false, true)
	f.Add(raw, []byte(nil), sum[:], true, true)
	f.Add(raw, []byte(nil), []byte(nil), false, true)
	f.Add(raw, []byte(nil), []byte(nil), false, false)
	f.Add([]byte("{}"), digest[:], sum[:], true, true)
	f.Fuzz(func(t *testing.T, raw, host, pin []byte, pinned, unbound bool) {
		digest, sum := manifest.InitdataDigest(manifest.Wrap(raw)), sha512.Sum384(raw)
		var hostData [32]byte
		copy(hostData[:], host)
		if !pinned {
			pin = nil
		} else if pin == nil {
			pin = []byte{}
		}
		got, err := bindingOf(hostData[:], digest, options(pin, unbound), sum)
		launch, pinHolds := hostData == digest, pinned && bytes.Equal(pin, sum[:])
		zero := hostData == [32]byte{}
		var want string
		switch {
		case launch && (pinHolds || !pinned):
			want = result.BindLaunch
		case zero && pinHolds:
			want = result.BindPinned
		case zero && !pinned && unbound:
			want = result.BindNone
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("HOST_DATA %x, pin %x, unbound %v: binding %q, error %v; want %q", hostData, pin, unbound, got, err, want)
		}
	})
}
