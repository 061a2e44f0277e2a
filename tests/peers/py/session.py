"""Works with a pool through the official Python client and prints what it saw as one JSON object.

Usage: session.py URL USER PASSWORD VM_UUID
"""

import json
import sys

import XenAPI


def wait(xapi, task):
    """Follows a task by its events to its end."""
    events_from = getattr(xapi.event, "from")
    token = ""
    seen = 0
    while xapi.task.get_status(task) == "pending":
        batch = events_from(["task/" + task], token, 10.0)
        token = batch["token"]
        seen += len(batch["events"])
    return xapi.task.get_record(task), seen


def failure(call, *parameters):
    try:
        call(*parameters)
    except XenAPI.Failure as error:
        return error.details
    return None


def main():
    url, user, password, vm_uuid = sys.argv[1:]
    session = XenAPI.Session(url, ignore_ssl=True)
    xapi = session.xenapi
    seen = {"wrong_password": failure(xapi.login_with_password, user, "wrong", "1.0", "peer")}
    xapi.login_with_password(user, password, "1.0", "peer")

    pool = list(xapi.pool.get_all_records().values())[0]
    seen["pool"] = pool["name_label"]
    seen["servertime"] = str(xapi.host.get_servertime(pool["master"]))
    seen["vms"] = sorted(vm["name_label"] for vm in xapi.VM.get_all_records().values())
    vm = xapi.VM.get_by_uuid(vm_uuid)
    record = xapi.VM.get_record(vm)
    # Integers travel as text in XML.
    seen["memory"] = record["memory_static_max"]
    seen["is_a_template"] = record["is_a_template"]

    batch = getattr(xapi.event, "from")(["vm"], "", 5.0)
    seen["first_events"] = sorted({event["operation"] + " " + event["class"] for event in batch["events"]})
    seen["valid_vms"] = batch["valid_ref_counts"]["vm"]

    task, _ = wait(xapi, xapi.Async.VM.snapshot(vm, "by python"))
    seen["task"] = task["status"]
    snapshot = task["result"].removeprefix("<value>").removesuffix("</value>")
    seen["snapshot"] = xapi.VM.get_uuid(snapshot)
    batch = getattr(xapi.event, "from")(["vm"], batch["token"], 5.0)
    seen["later_events"] = sorted(event["operation"] for event in batch["events"])

    task, _ = wait(xapi, xapi.Async.VM.start(snapshot, False, False))
    seen["failed_task"] = [task["status"]] + task["error_info"][:1]
    xapi.VM.add_to_other_config(vm, "peer", "python & <xml>")
    seen["duplicate"] = failure(xapi.VM.add_to_other_config, vm, "peer", "again")[:1]

    # The client logs in again by itself when its session is gone.
    session.session.logout(session._session)
    seen["after_session_lost"] = len(xapi.VM.get_all())
    xapi.session.logout()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
