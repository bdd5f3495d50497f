package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// AMDKDS is AMD's key distribution service, which has the VCEK certificate of every chip for every TCB.
const AMDKDS = "https://kdsintf.amd.com"

// vendorTimeout bounds one request. AMD's service is slow, and refuses more than a few of them a minute.
const vendorTimeout = 30 * time.Second

// FetchVCEK asks a key distribution service for the certificate of the key that signed a report, DER of at most 64 KiB.
// What it gives is not trusted: it goes into Evidence.Aux or a CertStore, and is held against the root there. A VLEK, and
// the VCEK of a chip whose host masks its id, can be had from no such service. It has been tried against a double only.
func FetchVCEK(ctx context.Context, base string, report []byte) ([]byte, error) {
	r, err := evidence.ParseSNP(report)
	if err != nil {
		return nil, err
	}
	if r.Signer() != evidence.VCEK {
		return nil, fmt.Errorf("fetch VCEK: the report is signed by a %s, which only its cloud gives", r.Signer())
	}
	if r.ChipID == [64]byte{} {
		return nil, errors.New("fetch VCEK: the host masks the chip's id")
	}
	// A report of version 2 does not name its processor; nearly all of them are Milan's.
	line := "Milan"
	if r.Version >= 3 {
		line = productLine(&r)
	}
	id, q := r.ChipID[:], url.Values{}
	for name, v := range map[string]uint8{"blSPL": r.ReportedTCB.Bootloader, "teeSPL": r.ReportedTCB.TEE, "snpSPL": r.ReportedTCB.SNP, "ucodeSPL": r.ReportedTCB.Microcode} {
		q.Set(name, strconv.Itoa(int(v)))
	}
	if r.Turin() {
		id = id[:8]
		q.Set("fmcSPL", strconv.Itoa(int(r.ReportedTCB.FMC)))
	}
	der, _, err := get(ctx, base+"/vcek/v1/"+url.PathEscape(line)+"/"+hex.EncodeToString(id)+"?"+q.Encode(), maxCertFile)
	if err != nil {
		return nil, fmt.Errorf("fetch VCEK: %w", err)
	}
	return der, nil
}

// get asks a vendor's service for at most limit bytes. No redirect is followed.
func get(ctx context.Context, where string, limit int64) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, vendorTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, nil, err
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s%s answers %s", req.URL.Host, req.URL.Path, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s%s answers more than %d bytes", req.URL.Host, req.URL.Path, limit)
	}
	return b, resp.Header, err
}
