#!/usr/bin/env python3
"""Verifies receipts of Ampoule by docs/RECEIPTS.md alone: kinds snp and tdx, complete receipts, offline.

usage: verify.py --root ROOT.pem [--measurements FILE] [--manifest FILE] [--result FILE] RECEIPT...

ROOT.pem is what is trusted: the ARK (with its ASK, which is not used), or the Intel SGX Root CA. Prints facts as JSON of each
and exits with 0, or says what is wrong and exits with 3. It shares no code with Ampoule: the standard library, and python3-cryptography (38 or
later).
"""
import argparse, base64, datetime, hashlib, json, struct, sys, warnings

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

warnings.simplefilter("ignore")  # AMD's VCEKs have the serial number 0

PREDICATE = "https://github.com/ampoule-vm/ampoule/receipt/v1"
INTEL_QE_SIGNER = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
INTEL_ROOT_SPKI = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"


class Refused(Exception):
    pass


def need(ok, why):
    if not ok:
        raise Refused(why)


def parse(text, what):
    """JSON without a member twice, in ours without white space: then it is the one form."""
    def once(pairs):
        d = dict(pairs)
        need(len(d) == len(pairs), what + ": a member twice")
        return d
    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as e:
        raise Refused("%s: %s" % (what, e))


def members(d, what, required, optional=()):
    need(isinstance(d, dict), what + ": not an object")
    for name in required:
        need(name in d, "%s: no %s" % (what, name))
    for name in d:
        need(name in required or name in optional, "%s: unknown member %s" % (what, name))


def b64(text, what):
    try:
        b = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as e:
        raise Refused("%s: %s" % (what, e))
    need(base64.b64encode(b).decode() == text, what + ": not canonical base64")
    return b


# -- certificates and lists

def cert(der, what):
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as e:
        raise Refused("%s: %s" % (what, e))


def cn(c):
    return c.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value


def tlv(b):
    """The first element of DER: tag, value, and what is behind it."""
    n, head = b[1], 2
    if n & 0x80:
        head = 2 + (n & 0x7F)
        n = int.from_bytes(b[2:head], "big")
    return b[0], b[head:head + n], b[head + n:]


def outer(der, content, what):
    """Around what is signed nothing may differ: the algorithm stands inside as well, and behind the signature is nothing."""
    _, body, rest = tlv(der)
    need(not rest and body.startswith(content), what + ": not in its one form")
    algorithm = body[len(content):]
    _, _, signature = tlv(algorithm)
    tag, bits, rest = tlv(signature)
    need(algorithm[:len(algorithm) - len(signature)] in content and tag == 3 and bits[0] == 0 and not rest, what + ": not in its one form")


def signed(parent, signature, content, what):
    """AMD signs with RSASSA-PSS and SHA-384, Intel with ECDSA P-256 and SHA-256."""
    key = parent.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, content, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    except InvalidSignature:
        raise Refused("%s: not signed by %s" % (what, cn(parent)))


def issued(child, parent, what):
    need(child.issuer == parent.subject, "%s: not issued by %s" % (what, cn(parent)))
    outer(child.public_bytes(Encoding.DER), child.tbs_certificate_bytes, what)
    signed(parent, child.signature, child.tbs_certificate_bytes, what)


def utc(t):
    return t.replace(tzinfo=datetime.timezone.utc)


def valid(c, at, what):
    need(utc(c.not_valid_before) <= at <= utc(c.not_valid_after), "%s: not valid at %s" % (what, at))


def unrevoked(der, issuer, at, certs, what):
    """A list that was issued after the run is judged when it was issued."""
    try:
        crl = x509.load_der_x509_crl(der)
    except (ValueError, TypeError) as e:
        raise Refused("%s: %s" % (what, e))
    outer(der, crl.tbs_certlist_bytes, what)
    need(crl.issuer == issuer.subject, what + ": of another issuer")
    signed(issuer, crl.signature, crl.tbs_certlist_bytes, what)
    need(max(at, utc(crl.last_update)) <= utc(crl.next_update), what + ": out of date")
    for c in certs:
        need(crl.get_revoked_certificate_by_serial_number(c.serial_number) is None, "%s: %s is revoked" % (what, cn(c)))


def ecdsa(key, raw, signed, digest, what):
    """raw: r, then s, big-endian, of the same length."""
    n = len(raw) // 2
    r, s = int.from_bytes(raw[:n], "big"), int.from_bytes(raw[n:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
    except InvalidSignature:
        raise Refused(what + ": signature does not hold")


# -- AMD SEV-SNP

def snp_report(j):
    """The 1184 bytes, put together from the members as the table in RECEIPTS.md has them."""
    out = bytearray(1184)
    turin = j["version"] >= 3 and j.get("cpuid_fam_id") == 0x1A

    def put(at, b):
        out[at:at + len(b)] = b

    members(j, "attestation_report", [
        "version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "sig_algo", "current_tcb", "plat_info", "key_info", "report_data",
        "measurement", "host_data", "id_key_digest", "author_key_digest", "report_id", "report_id_ma", "reported_tcb", "cpuid_fam_id",
        "cpuid_mod_id", "cpuid_step", "chip_id", "committed_tcb", "current", "committed", "launch_tcb", "signature",
    ], ["launch_mit_vector", "current_mit_vector"])
    members(j["signature"], "signature", ["r", "s"])

    def num(at, size, name):
        if j.get(name) is not None:
            put(at, j[name].to_bytes(size, "little"))

    def octets(at, size, v):
        need(len(v) == size, "attestation_report: wrong length")
        put(at, bytes(v))

    def tcb(at, name):
        t = j[name]
        members(t, name, ["fmc", "bootloader", "tee", "snp", "microcode"])
        need(turin or t["fmc"] is None, name + ": fmc")
        if turin:
            put(at, bytes([t["fmc"], t["bootloader"], t["tee"], t["snp"], 0, 0, 0, t["microcode"]]))
        else:
            put(at, bytes([t["bootloader"], t["tee"], 0, 0, 0, 0, t["snp"], t["microcode"]]))

    def firmware(at, name):
        members(j[name], name, ["major", "minor", "build"])
        put(at, bytes([j[name]["build"], j[name]["minor"], j[name]["major"]]))

    num(0x00, 4, "version"), num(0x04, 4, "guest_svn"), num(0x08, 8, "policy")
    octets(0x10, 16, j["family_id"]), octets(0x20, 16, j["image_id"])
    num(0x30, 4, "vmpl"), num(0x34, 4, "sig_algo"), tcb(0x38, "current_tcb"), num(0x40, 8, "plat_info"), num(0x48, 4, "key_info")
    octets(0x50, 64, j["report_data"]), octets(0x90, 48, j["measurement"]), octets(0xC0, 32, j["host_data"])
    octets(0xE0, 48, j["id_key_digest"]), octets(0x110, 48, j["author_key_digest"])
    octets(0x140, 32, j["report_id"]), octets(0x160, 32, j["report_id_ma"]), tcb(0x180, "reported_tcb")
    num(0x188, 1, "cpuid_fam_id"), num(0x189, 1, "cpuid_mod_id"), num(0x18A, 1, "cpuid_step")
    octets(0x1A0, 64, j["chip_id"]), tcb(0x1E0, "committed_tcb"), firmware(0x1E8, "current"), firmware(0x1EC, "committed")
    tcb(0x1F0, "launch_tcb"), num(0x1F8, 8, "launch_mit_vector"), num(0x200, 8, "current_mit_vector")
    octets(0x2A0, 72, j["signature"]["r"]), octets(0x2E8, 72, j["signature"]["s"])
    return bytes(out)


def amd_extensions(c):
    out = {}
    for e in c.extensions:
        oid = e.oid.dotted_string
        if oid.startswith("1.3.6.1.4.1.3704.1."):
            out[oid[len("1.3.6.1.4.1.3704.1."):]] = e.value.value
    return out


def snp(evidence, collateral, root, at):
    members(evidence, "evidence", ["attestation_report", "cert_chain"])
    need(evidence["cert_chain"] is None, "evidence: certificates beside the collateral's")
    members(collateral, "collateral", ["amd"])
    amd = collateral["amd"]
    members(amd, "collateral.amd", ["certificates", "crl"])
    need(len(amd["certificates"]) == 3, "collateral.amd.certificates: want VCEK or VLEK, ASK or ASVK, ARK")
    leaf, ca, ark = (cert(b64(c, "certificate"), "certificate") for c in amd["certificates"])
    need(ark in root, "the ARK is not the one that is trusted")
    issued(ark, ark, "ARK"), issued(ca, ark, "ASK"), issued(leaf, ca, "VCEK")
    unrevoked(b64(amd["crl"], "crl"), ark, at, [ca, leaf], "AMD's CRL")
    # AMD makes a VCEK when it is asked for, which may be after the run.
    moment = max(at, utc(leaf.not_valid_before))
    for c in (leaf, ca, ark):
        valid(c, moment, cn(c))

    j = evidence["attestation_report"]
    report = snp_report(j)
    ext = amd_extensions(leaf)
    line = ext["2"][2:].decode().split("-")[0]  # an IA5String: tag, length, text
    family = {0x19: "Genoa" if ((j["cpuid_mod_id"] or 0) >> 4) in (1, 10) else "Milan", 0x1A: "Turin"}
    need(j["version"] < 3 or family.get(j["cpuid_fam_id"]) == line, "the certificate is of another processor")
    signer = j["key_info"] >> 2 & 7
    need(signer in (0, 1) and cn(leaf) == ("SEV-VLEK" if signer else "SEV-VCEK"), "signed by another key than the certificate's")
    need(cn(ca) == ("SEV-VLEK-" if signer else "SEV-") + line and cn(ark) == "ARK-" + line, "certificates of another line")
    raw = j["signature"]["r"][::-1] + j["signature"]["s"][::-1]
    ecdsa(leaf.public_key(), bytes(raw), report[:0x2A0], hashes.SHA384(), "SNP report")

    need(not j["policy"] & 1 << 19, "the guest can be debugged")
    need(not j["policy"] & 1 << 18, "the guest can be moved")
    need(j["vmpl"] == 0, "not from VMPL 0")
    want = {"3.1": "bootloader", "3.2": "tee", "3.3": "snp", "3.8": "microcode"}
    if line == "Turin":
        want["3.9"] = "fmc"
    for arc, name in want.items():
        need(int.from_bytes(ext[arc][2:], "big") == j["reported_tcb"][name], "reported TCB is not the certificate's")
    chip = bytes(j["chip_id"])
    need(signer == 1 or not any(chip) or ext["4"][-len(chip):].ljust(64, b"\0") == chip, "of another chip")
    return bytes(j["report_data"]), bytes(j["measurement"]), bytes(j["host_data"]), report[0x180:0x188], ""


# -- Intel TDX

def pems(text, what):
    end = b"-----END CERTIFICATE-----\n"
    try:
        certs = [x509.load_pem_x509_certificate(p + end) for p in text.split(end) if p.strip()]
    except ValueError as e:
        raise Refused("%s: %s" % (what, e))
    need(b"".join(c.public_bytes(Encoding.PEM) for c in certs) == text, what + ": not in its one form")
    return certs


def chain(certs, root, leaf_name, at, what):
    """From the leaf to the root, each signed by the next."""
    need(2 <= len(certs) <= 3, what + ": want the leaf and what it hangs from")
    for i, c in enumerate(certs):
        issued(c, certs[min(i + 1, len(certs) - 1)], what)
        valid(c, at, what)
    need(certs[-1] in root, what + ": the root is not the one that is trusted")
    need(cn(certs[0]) == leaf_name, what + ": of " + cn(certs[0]))


def answer(text, member, signer, what):
    """What Intel signed is the member's bytes as they stand."""
    head, tail = b'{"%s":' % member.encode(), b',"signature":"'
    at = text.rfind(tail)
    need(text.startswith(head) and at > 0 and text.endswith(b'"}'), what + ": not in its one form")
    signed = text[len(head):at]
    ecdsa(signer.public_key(), bytes.fromhex(text[at + len(tail):-2].decode()), signed, hashes.SHA256(), what)
    return parse(signed, what)


def date(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def sgx_extension(c):
    """The object identifiers of a PCK certificate's extension, below Intel's arc, and their values."""
    arc = "1.2.840.113741.1.13.1"
    der = next(e.value.value for e in c.extensions if e.oid.dotted_string == arc)

    def oid(b):
        out, v = [b[0] // 40, b[0] % 40], 0
        for c in b[1:]:
            v = v << 7 | c & 0x7F
            if not c & 0x80:
                out.append(v)
                v = 0
        return ".".join(map(str, out))

    def walk(body):
        out = {}
        while body:
            _, pair, body = tlv(body)
            _, name, rest = tlv(pair)
            tag, value, _ = tlv(rest)
            name = oid(name)[len(arc) + 1:]
            out[name] = value
            if tag == 0x30 and name == "2":
                out.update(walk(value))
        return out
    return walk(tlv(der)[1])


def levels(items, svn, what):
    for l in items:
        if svn >= l["tcb"]["isvsvn"]:
            return l["tcbStatus"]
    raise Refused(what + ": no level as low")


def tdx(evidence, collateral, root, at):
    members(evidence, "evidence", ["cc_eventlog", "quote"])
    members(collateral, "collateral", ["intel"])
    intel = collateral["intel"]
    members(intel, "collateral.intel", ["tcb_info", "qe_identity", "issuers", "pck_crl", "root_crl"])
    intel = {k: b64(v, k) for k, v in intel.items()}

    q = b64(evidence["quote"], "quote")
    version, key_type, tee = struct.unpack_from("<HHI", q)
    need(version in (4, 5) and key_type == 2 and tee == 0x81, "quote: not TDX with ECDSA P-256")
    body = 48
    size = 584
    if version == 5:
        kind, size = struct.unpack_from("<HI", q, 48)
        need((kind, size) in ((2, 584), (3, 648)), "quote: body of another sort")
        body = 54
    end = body + size
    n, = struct.unpack_from("<I", q, end)
    auth = q[end + 4:]
    need(n == len(auth), "quote: bytes after its end")
    signature, key = auth[:64], auth[64:128]
    kind, n = struct.unpack_from("<HI", auth, 128)
    need(kind == 6 and n == len(auth) - 134, "quote: certification data")
    inner = auth[134:]
    report, report_signature = inner[:384], inner[384:448]
    n, = struct.unpack_from("<H", inner, 448)
    data, rest = inner[450:450 + n], inner[450 + n:]
    kind, n = struct.unpack_from("<HI", rest)
    need(kind == 5 and n == len(rest) - 6, "quote: PCK certificates")
    # Intel's own ends in a zero byte, and may end without a newline.
    certs = pems(rest[6:].removesuffix(b"\0").removesuffix(b"\n") + b"\n", "PCK certificates")
    chain(certs, root, "Intel SGX PCK Certificate", at, "PCK certificates")
    pck = certs[0]
    ecdsa(pck.public_key(), report_signature, report, hashes.SHA256(), "report of the quoting enclave")
    need(report[320:352] == hashlib.sha256(key + data).digest() and not any(report[352:384]), "the enclave vouches for another key")
    need(not report[48] & 2, "the quoting enclave can be debugged")
    simulated = not any(spki(c) == INTEL_ROOT_SPKI for c in root)
    if not simulated:
        need(report[128:160].hex() == INTEL_QE_SIGNER and struct.unpack_from("<H", report, 256)[0] == 2, "not Intel's quoting enclave")
    attestation = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + key)
    ecdsa(attestation, signature, q[:end], hashes.SHA256(), "quote")

    b = q[body:end]
    attributes, = struct.unpack_from("<Q", b, 120)
    need(not attributes & 0xFF, "the guest can be debugged")
    need(not attributes & 1 << 29, "the guest can be moved")
    need(not any(b[64:112]) and not any(b[112:120]), "not Intel's TDX module")

    # Collateral is judged when the run ended or, if it is newer, when the newest part of it was issued.
    dates = [at] + [utc(x509.load_der_x509_crl(intel[k]).last_update) for k in ("pck_crl", "root_crl")]
    for name, member in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        dates.append(date(parse(intel[name], name)[member]["issueDate"]))
    moment = max(dates)
    issuers = pems(intel["issuers"], "issuers")
    chain(issuers, root, "Intel SGX TCB Signing", moment, "issuers")
    unrevoked(intel["root_crl"], certs[-1], moment, [certs[1], issuers[0]], "root CRL")
    unrevoked(intel["pck_crl"], certs[1], moment, [pck], "PCK CRL")
    info = answer(intel["tcb_info"], "tcbInfo", issuers[0], "TCB info")
    qe = answer(intel["qe_identity"], "enclaveIdentity", issuers[0], "QE identity")
    for j in (info, qe):
        need(date(j["issueDate"]) <= moment <= date(j["nextUpdate"]), "collateral: out of date")
    need(info["id"] == "TDX" and info["version"] == 3 and qe["id"] == "TD_QE" and qe["version"] == 2, "collateral: of another sort")
    sgx = sgx_extension(pck)
    need(info["fmspc"].lower() == sgx["4"].hex() and info["pceId"].lower() == sgx["3"].hex(), "TCB info: of another platform")
    svns = [int.from_bytes(sgx["2.%d" % (i + 1)], "big") for i in range(17)]
    tdx_svn = b[:16]
    first = 2 if tdx_svn[1] else 0
    statuses = []
    for l in info["tcbLevels"]:
        t = l["tcb"]
        if (all(have >= c["svn"] for have, c in zip(svns, t["sgxtcbcomponents"])) and svns[16] >= t["pcesvn"]
                and all(tdx_svn[i] >= t["tdxtcbcomponents"][i]["svn"] for i in range(first, 16))):
            statuses.append(l["tcbStatus"])
            break
    need(statuses, "TCB info: no level as low as the platform's")
    module = info["tdxModule"]
    if first:
        module = next(m for m in info["tdxModuleIdentities"] if m["id"] == "TDX_%02x" % tdx_svn[1])
        statuses.append(levels(module["tcbLevels"], tdx_svn[0], "TDX module"))
    need(module["mrsigner"].lower() == b[64:112].hex(), "TCB info: of another TDX module")
    mask = bytes.fromhex(qe["attributesMask"])
    need(bytes(x & y for x, y in zip(report[48:64], mask)) == bytes.fromhex(qe["attributes"])
         and qe["mrsigner"].lower() == report[128:160].hex() and qe["isvprodid"] == struct.unpack_from("<H", report, 256)[0],
         "QE identity: of another enclave")
    mask = bytes.fromhex(qe["miscselectMask"])
    need(bytes(x & y for x, y in zip(report[16:20], mask)) == bytes.fromhex(qe["miscselect"]), "QE identity: of another enclave")
    statuses.append(levels(qe["tcbLevels"], struct.unpack_from("<H", report, 258)[0], "QE identity"))
    need(all(s == "UpToDate" for s in statuses), "patch level: %s" % statuses)

    log = evidence["cc_eventlog"]
    log = b64(log, "cc_eventlog") if log else b""
    register = b[184:232]
    need(not any(register[32:]), "MRCONFIGID: not a SHA-256")
    return b[520:584], b[136:184], register[:32], tdx_svn, hashlib.sha256(log).hexdigest() if log else ""


def spki(c):
    from cryptography.hazmat.primitives.serialization import PublicFormat
    return hashlib.sha256(c.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


# -- the receipt

def initdata(manifest):
    """The document that the launch names: TOML around the manifest's exact bytes."""
    text = ""
    for c in manifest.decode():
        short = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
        text += short.get(c) or ("\\u%04X" % ord(c) if ord(c) < 32 or ord(c) == 127 else c)
    doc = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"ampoule.json" = "%s"\n' % text
    return hashlib.sha256(doc.encode()).hexdigest()


def verify(raw, root, measurements, manifest, result):
    need(len(raw) <= 4 << 20, "over 4 MiB")
    receipt = parse(raw, "receipt")
    members(receipt, "receipt", ["payloadType", "payload", "evidence", "collateral"])
    need(receipt["payloadType"] == "application/vnd.in-toto+json", "another payloadType")
    members(receipt["evidence"], "evidence", ["kind", "evidence"])
    payload = b64(receipt["payload"], "payload")
    s = parse(payload, "statement")
    members(s, "statement", ["_type", "subject", "predicateType", "predicate"])
    need(s["_type"] == "https://in-toto.io/Statement/v1" and s["predicateType"] == PREDICATE, "another predicateType")
    p = s["predicate"]
    members(p, "predicate", [
        "completed", "profile", "manifest_sha384", "initdata_sha256", "binding", "build", "tee", "sealed", "reason", "images", "workload",
        "resources", "timeline", "notes"], ["computation_id", "measurement", "image_policy_sha256"])
    at = date(p["completed"])
    need(at <= datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=10), "completed in the future")

    kind = receipt["evidence"]["kind"]
    need(kind in ("snp", "tdx"), "evidence of a kind that this verifier does not know")
    judge = snp if kind == "snp" else tdx
    data, measurement, register, tcb, log = judge(receipt["evidence"]["evidence"], receipt["collateral"], root, at)
    want = hashlib.sha512(b"ampoule receipt v1\0" + struct.pack(">Q", len(payload)) + payload).digest()
    need(data == want, "report_data: the evidence is about another statement")

    need(p["tee"]["kind"] == kind, "the statement names another TEE")
    need(p["build"].get("event_log_sha256", "") == log, "the statement names another event log")
    need(p.get("measurement", measurement.hex()) == measurement.hex(), "the statement names another measurement")
    need(measurements is None or measurement.hex() in measurements, "measurement: not accepted")
    need(p["binding"] in ("launch", "pinned"), "binding: this verifier knows launch and pinned")
    need(p["binding"] == "pinned" or register.hex() == p["initdata_sha256"], "binding: the launch named another manifest")
    if manifest is not None:
        need(hashlib.sha384(manifest).hexdigest() == p["manifest_sha384"], "manifest: another one")
        need(initdata(manifest) == p["initdata_sha256"], "manifest: another initdata document")
    digests = [f["digest"]["sha256"] for f in s["subject"]]
    need(s["subject"][-1]["name"] == "result.tar", "subject: the last is not result.tar")
    need(result is None or hashlib.sha256(result).hexdigest() in digests, "result: another one")
    return {
        "statement_sha256": hashlib.sha256(payload).hexdigest(), "report_data": want.hex(), "measurement": measurement.hex(),
        "completed": p["completed"], "exit": p["workload"].get("exit"),
    }


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--root", required=True)
    for name in ("--measurements", "--manifest", "--result"):
        args.add_argument(name)
    args.add_argument("receipt", nargs="+")
    a = args.parse_args()

    def read(path):
        if path is None:
            return None
        with open(path, "rb") as f:
            return f.read()
    root = [c for c in pems(read(a.root), a.root) if c.issuer == c.subject]
    measurements = json.loads(read(a.measurements)) if a.measurements else None
    code = 0
    for path in a.receipt:
        try:
            print(json.dumps(verify(read(path), root, measurements, read(a.manifest), read(a.result)), indent=2))
        except Exception as e:  # whatever goes wrong, nothing is proven
            print("refused: %s" % (e if isinstance(e, Refused) else repr(e)), file=sys.stderr)
            code = 3
    return code


if __name__ == "__main__":
    sys.exit(main())
