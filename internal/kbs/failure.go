package kbs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"syscall"
)

// A failure is one row of failures: what sort of error, and what to tell the owner.
type failure struct {
	is          func(error) bool
	cause, next string
}

// explainFailure finds cause and next step of an exchange that ended without a refusal; "" for what explains itself.
func explainFailure(err error) (cause, next string) {
	for _, f := range failures {
		if f.is(err) {
			return f.cause, f.next
		}
	}
	return "", ""
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func target(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func badCertificate(reasons ...x509.InvalidReason) func(error) bool {
	return func(err error) bool {
		e, ok := errors.AsType[x509.CertificateInvalidError](err)
		for _, r := range reasons {
			if ok && e.Reason == r {
				return true
			}
		}
		return false
	}
}

func status(from, to int) func(error) bool {
	return func(err error) bool {
		e, ok := errors.AsType[statusError](err)
		return ok && from <= int(e) && int(e) <= to
	}
}

// failures is in order: the first row that applies is it.
var failures = []failure{
	{as[*pinError],
		"the broker has another key than the one that the manifest pins: it was renewed, or something else answers at this address",
		"compare the key with the broker's owner, then put the SPKI SHA-256 of its certificate into the manifest"},
	{badCertificate(x509.Expired),
		"the broker's certificate is not valid at the time of this machine: it has expired, or the host's clock is wrong",
		"renew the certificate, or set the clock of the host, from which this machine has its time"},
	{as[x509.UnknownAuthorityError],
		"nothing that this image trusts vouches for the broker's certificate",
		"give its CA or its SPKI in the manifest"},
	{as[x509.HostnameError],
		"the broker's certificate is for another name than the manifest uses",
		"use a name that is in the certificate, or pin its SPKI in the manifest and give no CA"},
	{as[*tls.CertificateVerificationError],
		"the broker's certificate chain does not verify",
		"check key usages and constraints of the chain, or pin the SPKI of the broker in the manifest"},
	{as[tls.RecordHeaderError],
		"what listens there does not speak TLS",
		"check the port, or give the broker a certificate; http works only for images that allow it"},
	{as[tls.AlertError],
		"the broker ends the TLS handshake: it may ask for a client certificate, or have no TLS 1.2 or later",
		"let it take guests without a client certificate, by TLS 1.2 or 1.3"},
	{as[*redirectError],
		"the broker sends guests elsewhere, which is never followed: the manifest names the brokers",
		"put the broker's own address into the manifest"},
	{as[*net.DNSError],
		"the broker's name cannot be resolved",
		"check the name in the manifest and the name server of the guest's network, or use an address"},
	{target(syscall.ECONNREFUSED),
		"nothing listens at this address",
		"start the broker, and check host and port in the manifest; 127.0.0.1 is the guest itself"},
	{func(err error) bool {
		return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
	},
		"there is no way from the guest to the broker",
		"check the guest's network, its routes, and firewalls between"},
	{target(context.DeadlineExceeded),
		"the broker did not answer in time: it hangs, waits for collateral itself, or a firewall drops packets",
		"look whether the request is in the broker's log"},
	{func(err error) bool {
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
	},
		"the broker ended the connection in the middle of an answer",
		"look in the broker's log for a crash, or for a proxy that speaks TLS where http was asked"},
	{target(errTooLarge),
		"no answer of a key broker is that large",
		"check what answers at this address"},
	{as[malformed],
		"the answer is not one of the key broker protocol, or was changed on its way",
		"check that this is the address of a Trustee, and what is in front of it"},
	{status(400, 400),
		"the broker cannot read the request, or speaks TLS where http was asked",
		"check scheme and port in the manifest, and that this is the address of a Trustee"},
	{status(429, 429),
		"the broker or what is in front of it limits requests",
		"start the guest again later, or raise the limit"},
	{status(502, 504),
		"what is in front of the broker cannot reach it",
		"start the broker, and check the gateway's log"},
	{status(500, 599),
		"the broker, or what is in front of it, is out of order",
		"read its log at this time"},
	{as[statusError],
		"a key broker does not answer with this status",
		"check that this is the address of a Trustee, and what is in front of it"},
}
