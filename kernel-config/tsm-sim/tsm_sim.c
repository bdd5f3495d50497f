// SPDX-License-Identifier: GPL-2.0-only
/*
 * A stand-in for a secure processor. Simulation kernels only.
 *
 * It registers with configfs-tsm under the name of a real driver and has every report signed by the process
 * at the other end of vsock port tsm_sim.vsock_port of the host. So the programs above configfs-tsm run
 * unchanged on a machine that protects nothing. One connection is one report, all integers little endian.
 *
 * tsm_sim.format=snp, which is the default, plays the SEV-SNP driver:
 *
 *	guest: "TSM1" | u32 privilege level | 64 bytes of report data
 *	host:  u32 length | report | u32 length | certificate table (may be empty)
 *
 * tsm_sim.format=tdx plays the TDX driver, whose reports have neither privilege levels nor certificates:
 *
 *	guest: "TDX1" | 64 bytes of report data
 *	host:  u32 length | quote
 *
 * Without the port, or with a format that is neither, nothing is registered and the machine has no TEE.
 *
 * Copyright (c) 2026 The Ampoule Authors
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tsm.h>
#include <linux/uio.h>
#include <linux/vm_sockets.h>
#include <net/net_namespace.h>
#include <net/sock.h>

/* A secure processor answers in milliseconds; a host that is silent for longer must not hold up the guest. */
#define ANSWER_WITHIN	(10 * HZ)

static unsigned int vsock_port;
module_param(vsock_port, uint, 0444);
MODULE_PARM_DESC(vsock_port, "vsock port of the host on which reports are signed; 0: no provider");

static char *format = "snp";
module_param(format, charp, 0444);
MODULE_PARM_DESC(format, "whose reports: snp or tdx");

/* TSM_OUTBLOB_MAX is 32 KiB; the buffer of the TDX driver's quotes has half of it. */
#define TDX_QUOTE_MAX	(16 * 1024)

struct snp_request {
	char magic[4];
	__le32 privlevel;
	u8 inblob[TSM_INBLOB_MAX];
} __packed;

struct tdx_request {
	char magic[4];
	u8 inblob[TSM_INBLOB_MAX];
} __packed;

/*
 * Moves exactly len bytes before the deadline (in jiffies). The socket's own timeout starts afresh with every
 * byte that arrives, so what is left is set again before each call and MSG_WAITALL is not used.
 */
static int transfer(struct socket *sock, void *buf, size_t len, bool send, unsigned long deadline)
{
	while (len) {
		struct kvec vec = { .iov_base = buf, .iov_len = len };
		struct msghdr msg = { .msg_flags = send ? MSG_NOSIGNAL : 0 };
		long left = (long)(deadline - jiffies);
		int n;

		if (left <= 0)
			return -ETIMEDOUT;
		if (send) {
			WRITE_ONCE(sock->sk->sk_sndtimeo, left);
			n = kernel_sendmsg(sock, &msg, &vec, 1, len);
		} else {
			WRITE_ONCE(sock->sk->sk_rcvtimeo, left);
			n = kernel_recvmsg(sock, &msg, &vec, 1, len, 0);
		}
		if (n == -EAGAIN)
			return -ETIMEDOUT;
		if (n < 0)
			return n;
		if (n == 0)
			return -ECONNRESET;
		buf += n;
		len -= n;
	}
	return 0;
}

/* Receives one length-prefixed blob of at most max bytes. *blob stays NULL if it is empty. */
static int receive(struct socket *sock, u8 **blob, size_t *len, size_t max, unsigned long deadline)
{
	__le32 prefix;
	u32 want;
	u8 *b;
	int rc;

	rc = transfer(sock, &prefix, sizeof(prefix), false, deadline);
	if (rc)
		return rc;
	want = le32_to_cpu(prefix);
	if (want > max)
		return -EMSGSIZE;
	if (!want)
		return 0;
	b = kvzalloc(want, GFP_KERNEL);
	if (!b)
		return -ENOMEM;
	rc = transfer(sock, b, want, false, deadline);
	if (rc) {
		kvfree(b);
		return rc;
	}
	*blob = b;
	*len = want;
	return 0;
}

static int snp_exchange(struct socket *sock, struct tsm_report *report)
{
	struct snp_request req = {
		.magic = { 'T', 'S', 'M', '1' },
		.privlevel = cpu_to_le32(report->desc.privlevel),
	};
	unsigned long deadline = jiffies + ANSWER_WITHIN;
	size_t out_len = 0, aux_len = 0;
	u8 *out = NULL, *aux = NULL;
	int rc;

	memcpy(req.inblob, report->desc.inblob, sizeof(req.inblob));
	rc = transfer(sock, &req, sizeof(req), true, deadline);
	if (!rc)
		rc = receive(sock, &out, &out_len, TSM_OUTBLOB_MAX, deadline);
	if (!rc && !out)
		rc = -ENODATA;
	if (!rc)
		rc = receive(sock, &aux, &aux_len, TSM_OUTBLOB_MAX, deadline);
	if (rc) {
		kvfree(out);
		return rc;
	}
	report->outblob = out;
	report->outblob_len = out_len;
	report->auxblob = aux;
	report->auxblob_len = aux_len;
	return 0;
}

static int tdx_exchange(struct socket *sock, struct tsm_report *report)
{
	struct tdx_request req = { .magic = { 'T', 'D', 'X', '1' } };
	unsigned long deadline = jiffies + ANSWER_WITHIN;
	size_t len = 0;
	u8 *quote = NULL;
	int rc;

	memcpy(req.inblob, report->desc.inblob, sizeof(req.inblob));
	rc = transfer(sock, &req, sizeof(req), true, deadline);
	if (!rc)
		rc = receive(sock, &quote, &len, TDX_QUOTE_MAX, deadline);
	if (rc)
		return rc;
	if (!quote)
		return -ENODATA;
	report->outblob = quote;
	report->outblob_len = len;
	return 0;
}

static int ask(struct tsm_report *report, int (*exchange)(struct socket *, struct tsm_report *))
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = vsock_port,
	};
	struct socket *sock;
	int rc;

	/* As both real drivers do: no padding of what the caller wants signed. */
	if (report->desc.inblob_len != TSM_INBLOB_MAX)
		return -EINVAL;

	rc = sock_create_kern(&init_net, AF_VSOCK, SOCK_STREAM, 0, &sock);
	if (rc)
		return rc;
	/* vsock gives up on a connection after two seconds of its own accord. */
	rc = kernel_connect(sock, (struct sockaddr *)&host, sizeof(host), 0);
	if (!rc)
		rc = exchange(sock, report);
	sock_release(sock);
	return rc;
}

static int snp_report_new(struct tsm_report *report, void *data)
{
	return ask(report, snp_exchange);
}

static int tdx_report_new(struct tsm_report *report, void *data)
{
	return ask(report, tdx_exchange);
}

static bool snp_attr_visible(int n)
{
	switch (n) {
	case TSM_REPORT_GENERATION:
	case TSM_REPORT_PROVIDER:
	case TSM_REPORT_PRIVLEVEL:
	case TSM_REPORT_PRIVLEVEL_FLOOR:
		return true;
	}
	return false;
}

static bool snp_bin_attr_visible(int n)
{
	switch (n) {
	case TSM_REPORT_INBLOB:
	case TSM_REPORT_OUTBLOB:
	case TSM_REPORT_AUXBLOB:
		return true;
	}
	return false;
}

static bool tdx_attr_visible(int n)
{
	return n == TSM_REPORT_GENERATION || n == TSM_REPORT_PROVIDER;
}

static bool tdx_bin_attr_visible(int n)
{
	return n == TSM_REPORT_INBLOB || n == TSM_REPORT_OUTBLOB;
}

static const struct tsm_ops snp_ops = {
	.name = "sev_guest",
	.report_new = snp_report_new,
	.report_attr_visible = snp_attr_visible,
	.report_bin_attr_visible = snp_bin_attr_visible,
};

static const struct tsm_ops tdx_ops = {
	.name = "tdx_guest",
	.report_new = tdx_report_new,
	.report_attr_visible = tdx_attr_visible,
	.report_bin_attr_visible = tdx_bin_attr_visible,
};

static int __init tsm_sim_init(void)
{
	const struct tsm_ops *ops;
	int rc;

	if (!vsock_port)
		return 0;
	if (!strcmp(format, "snp")) {
		ops = &snp_ops;
	} else if (!strcmp(format, "tdx")) {
		ops = &tdx_ops;
	} else {
		pr_err("format is neither snp nor tdx\n");
		return -EINVAL;
	}
	rc = tsm_register(ops, NULL);
	if (rc)
		pr_err("a real TEE is here already (%d); it stays in charge\n", rc);
	else
		pr_warn("SIMULATED TEE: this machine protects nothing\n");
	return rc;
}
late_initcall(tsm_sim_init);
